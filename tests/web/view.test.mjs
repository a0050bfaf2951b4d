/** Claims about what web/view.js puts on a node. The widget is there already, so no page is needed. */
import assert from "node:assert/strict";
import test from "node:test";

import { show } from "../../web/view.js";

const PROGRESS = "$$node-text-preview";
const EXPERT = { role: "high_noise", title: "balanced", bytes: 9e9, error: null, formats: [], kinds: ["ffn.0"], cells: [["keep"]], cards: ["RTX 50: all"] };

/** A node whose widget is made, and the HTML that a message leaves in it. */
function shown(message) {
  const content = { innerHTML: "before" };
  const node = { widgets: [{ name: PROGRESS }, { name: "wan22_view", element: { firstChild: content } }] };
  node.removeWidget = (widget) => node.widgets.splice(node.widgets.indexOf(widget), 1);
  show(node, message);
  return { html: content.innerHTML, names: node.widgets.map(({ name }) => name) };
}

test("a plan stands above the table, and the text of the same node below both", () => {
  const { html, names } = shown({ text: ["two lines", "of text"], wan22_table: [{ head: ["a", "file"], rows: [] }], wan22_plan: [{ version: 1, experts: [EXPERT] }] });
  assert.match(html, /^<svg .*<\/svg><pre>RTX 50: all<\/pre><table>.*<\/table><pre>two lines\nof text<\/pre>$/);
  assert.deepEqual(names, ["wan22_view"]);
});

test("a plan alone is shown", () => {
  assert.match(shown({ wan22_plan: [{ version: 1, experts: [EXPERT] }] }).html, /^<svg .*<\/pre>$/);
});

test("a message of another kind leaves the node as it is", () => {
  assert.deepEqual(shown({ images: [] }), { html: "before", names: [PROGRESS, "wan22_view"] });
});
