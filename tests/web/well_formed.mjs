/** A strict reader of the little XML that we write: tags close in order, attributes are quoted, text holds no bare sign. */
import assert from "node:assert/strict";

export function assertWellFormed(xml) {
  const open = [];
  let rest = xml;
  while (rest) {
    const tag = /^<(\/?)([a-z]+)((?: [a-zA-Z:-]+="[^"<]*")*)(\/?)>/.exec(rest);
    const plain = /^(?:[^<>&]|&(?:amp|lt|gt|quot|#39);)+/.exec(rest);
    assert.ok(tag || plain, `not well formed at: ${rest.slice(0, 60)}`);
    if (tag && tag[1]) assert.equal(open.pop(), tag[2]);
    else if (tag && !tag[4]) open.push(tag[2]);
    rest = rest.slice((tag ?? plain)[0].length);
  }
  assert.deepEqual(open, []);
}
