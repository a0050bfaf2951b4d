/** Claims about web/recipe.js. The files are written by hand as the safetensors README describes them. */
import assert from "node:assert/strict";
import test from "node:test";

import { bringsFiles, fill, readHeader, recipeFiles, recipeOf } from "../../web/recipe.js";

function model(name, header, size = 0) {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(json.length), true);
  return Object.assign(new Blob([length.buffer, json, new Uint8Array(size)]), { name });
}

const entry = (expert) => ({ version: 1, expert, base: { name: "b" }, passes: [1], before: [2], recipe: { version: 1, title: "Ä//x" } });
const saved = (name, expert) => model(name, { __metadata__: { wan22_master: JSON.stringify(entry(expert)) } }, 64);
const text = (name, body) => Object.assign(new Blob([body]), { name });
const node = () => ({ widgets: ["recipe", "text", "text_low"].map((name) => ({ name, value: "old" })) });
const values = ({ widgets }) => Object.fromEntries(widgets.map(({ name, value }) => [name, value]));

test("only the length and the header of a model are read, whatever its size", async () => {
  const real = saved("m.safetensors", "model"), slices = [];
  const huge = { name: "m.safetensors", size: 14e9, slice: (from, to) => (slices.push([from, to]), real.slice(from, to)) };
  const header = await readHeader(huge);
  assert.equal(JSON.parse(header.__metadata__.wan22_master).recipe.title, "Ä//x");
  assert.deepEqual(slices, [[0, 8], [8, real.size - 64]]);
});

test("a model's recipe comes without what is said twice, into the widget of its expert", async () => {
  const { text: told, widget } = await recipeOf(saved("m.safetensors", "low_noise"));
  assert.equal(widget, "text_low");
  assert.deepEqual(Object.keys(JSON.parse(told)), ["version", "expert", "base", "recipe"]);
  assert.equal((await recipeOf(saved("m.SAFETENSORS", "high_noise"))).widget, "text");
});

test("a recipe file comes as it is, an original's one for low noise into the second widget", async () => {
  const original = '{ // a remark\n "pipeline": []}';
  assert.deepEqual(await recipeOf(text("mix_low_noise.json", original)), { text: original, widget: "text_low" });
  for (const [name, body] of [["slow_flow.json", original], ["glow.json", original], ["mix_low.json", '{"version": 1}']]) {
    assert.equal((await recipeOf(text(name, body))).widget, "text", name);
  }
});

test("what is no model, or a model without a recipe, is told by name", async () => {
  const wrong = [model("a.safetensors", {}), text("a.safetensors", "abc"), text("a.safetensors", "\xff".repeat(20)),
    model("a.safetensors", "{nonsense"), model("a.safetensors", { __metadata__: { wan22_master: '{"version":1}' } })];
  for (const file of wrong) {
    const there = node();
    const { filled, errors } = await fill(there, [file]);
    assert.deepEqual([filled, errors.length], [[], 1]);
    assert.match(errors[0], /^a\.safetensors: /);
    assert.deepEqual(values(there), { recipe: "old", text: "old", text_low: "old" });
  }
});

test("two halves fill both widgets, one half leaves the other, and a whole recipe empties it", async () => {
  const both = node(), half = node(), whole = node();
  assert.deepEqual((await fill(both, [saved("l.safetensors", "low_noise"), saved("h.safetensors", "high_noise")])).filled.sort(), ["text", "text_low"]);
  assert.match(values(both).text, /high_noise/);
  assert.match(values(both).text_low, /low_noise/);
  await fill(half, [saved("h.safetensors", "high_noise")]);
  assert.equal(values(half).text_low, "old");
  await fill(whole, [text("r.json", '{"version": 1}')]);
  assert.deepEqual(values(whole), { recipe: "old", text: '{"version": 1}', text_low: "" });
});

test("a second file for one expert is refused by name", async () => {
  const { filled, errors } = await fill(node(), [saved("a.safetensors", "model"), saved("b.safetensors", "model")]);
  assert.deepEqual(filled, ["text"]);
  assert.match(errors[0], /^b\.safetensors/);
});

test("files are told from other drags, and ours from other files", () => {
  assert.equal(bringsFiles({ dataTransfer: { items: [{ kind: "file" }] } }), true);
  assert.equal(bringsFiles({ dataTransfer: { items: [{ kind: "string" }], types: ["text/plain"] } }), false);
  assert.equal(bringsFiles({}), false);
  assert.deepEqual(recipeFiles([{ name: "a.png" }, { name: "b.JSON" }, { name: "c.safetensors" }]).map(({ name }) => name), ["b.JSON", "c.safetensors"]);
});
