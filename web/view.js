/** The one DOM widget of our nodes: shows what a run told, in the classic canvas and in Nodes 2.0. */
import { drawConflicts } from "./conflicts.js";
import { drawReport } from "./meter.js";
import { drawPlan } from "./plan.js";
import { drawTable, drawText, parts } from "./table.js";

const NAME = "wan22_view";
const PROGRESS = "$$node-text-preview"; // of the page itself, made by send_progress_text
const STYLE = `
.wan22-view { overflow: auto; box-sizing: border-box; font: 11px/1.4 sans-serif; color: var(--input-text, #ddd); user-select: text; }
.wan22-view pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 11px/1.4 ui-monospace, monospace; }
.wan22-view table { border-collapse: collapse; width: 100%; margin-bottom: 4px; }
.wan22-view th, .wan22-view td { text-align: left; padding: 1px 6px 1px 0; white-space: nowrap; border-bottom: 1px solid var(--border-color, #444); }
.wan22-view td.file { white-space: normal; overflow-wrap: anywhere; border: none; padding-top: 4px; font-weight: bold; }
.wan22-view svg { display: block; }
.wan22-view summary { cursor: pointer; color: var(--descrip-text, #999); }
.wan22-view ol { margin: 2px 0 4px; padding-left: 24px; }
`;

export function addStyle() {
  const style = document.createElement("style");
  style.textContent = STYLE;
  document.head.append(style);
}

/** Widget of `node`, made at its first use: a node that has told nothing keeps its size. */
function viewOf(node) {
  const there = node.widgets?.find(({ name }) => name === NAME);
  if (there) return there;
  const element = document.createElement("div");
  element.className = "wan22-view";
  const content = element.appendChild(document.createElement("div"));
  const widget = node.addDOMWidget(NAME, "wan22_view", element, { serialize: false, hideOnZoom: false, getMinHeight: () => heightOf(element) });
  widget.serialize = false;
  new ResizeObserver(() => fit(node, element, content)).observe(content);
  return widget;
}

function heightOf(element) {
  return parseInt(element.style.minHeight || "20", 10);
}

/** Give the widget the height that its content takes at this width; 0 means it is not laid out now. */
function fit(node, element, content) {
  const height = content.offsetHeight + 6;
  if (height <= 6 || height === heightOf(element)) return;
  const spare = node.size[1] - node.computeSize()[1]; // what its owner has given it beyond the least
  element.style.minHeight = `${height}px`; // Nodes 2.0 asks the element, the classic canvas asks getMinHeight
  const least = node.computeSize();
  if (!globalThis.LiteGraph?.vueNodesMode) node.setSize([Math.max(node.size[0], least[0]), least[1] + Math.max(spare, 0)]);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** Show the output message of a run on its node, in place of the progress line that the page put there. */
export function show(node, message) {
  const { report, conflicts, plan, table, text } = parts(message);
  if (!report && !conflicts && !plan && !table && !text) return;
  const progress = node.widgets?.find(({ name }) => name === PROGRESS);
  if (progress) node.removeWidget(progress);
  const lines = text && !report && !conflicts ? drawText(text) : ""; // a report says it all; its text is for the history
  const drawn = (report ? drawReport(report) : "") + (conflicts ? drawConflicts(conflicts) : "") + (plan ? drawPlan(plan) : "");
  viewOf(node).element.firstChild.innerHTML = drawn + (table ? drawTable(table) : "") + lines;
}
