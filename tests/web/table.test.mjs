/** Claims about web/table.js. */
import assert from "node:assert/strict";
import test from "node:test";

import { drawTable, drawText, parts } from "../../web/table.js";

const NOTHING = { report: null, conflicts: null, plan: null, table: null, text: null };

test("a file name has a line of its own above the numbers of its row", () => {
  const html = drawTable({ head: ["format", "size", "file"], rows: [["bf16", "28.6 GB", "mix.safetensors"]] });
  assert.equal(html, "<table><thead><tr><th>format</th><th>size</th></tr></thead><tbody>" +
    '<tr><td class="file" colspan="2">mix.safetensors</td></tr><tr><td>bf16</td><td>28.6 GB</td></tr></tbody></table>');
});

test("file names and texts from strangers stay text", () => {
  assert.doesNotMatch(drawTable({ head: ["a", "file"], rows: [["<b>", "<img>"]] }), /<b>|<img>/);
  assert.equal(drawText(["a <b>", "  c & d"]), "<pre>a &lt;b&gt;\n  c &amp; d</pre>");
});

test("a message is taken apart, and a message of another kind has no parts", () => {
  assert.deepEqual(parts({ text: ["a"], wan22_table: [{ head: [] }] }), { ...NOTHING, table: { head: [] }, text: ["a"] });
  assert.deepEqual(parts({ wan22_report: [{ version: 1 }], text: "b" }), { ...NOTHING, report: { version: 1 }, text: ["b"] });
  assert.deepEqual(parts({ wan22_conflicts: [{ version: 1 }] }), { ...NOTHING, conflicts: { version: 1 } });
  const both = parts({ text: ["a"], wan22_plan: [{ version: 1 }] });
  assert.deepEqual(both, { ...NOTHING, plan: { version: 1 }, text: ["a"] });
  assert.deepEqual(Object.keys(both), ["report", "conflicts", "plan", "table", "text"]);
  assert.deepEqual(parts({ images: [] }), NOTHING);
  assert.deepEqual(parts(null), NOTHING);
});
