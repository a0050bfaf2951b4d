/** Table of a plan, and plain text -> HTML text. Pure: no DOM, no app. File names may come from anybody, so all text is escaped. */
import { escapeText } from "./meter.js";

/** {head: [...], rows: [[...]]} as an HTML table; the last cell, a file name, gets a line of its own above its row. */
export function drawTable({ head, rows }) {
  const line = (cells, tag) => `<tr>${cells.map((cell) => `<${tag}>${escapeText(cell)}</${tag}>`).join("")}</tr>`;
  const body = rows.map((row) => `<tr><td class="file" colspan="${row.length - 1}">${escapeText(row.at(-1))}</td></tr>${line(row.slice(0, -1), "td")}`);
  return `<table><thead>${line(head.slice(0, -1), "th")}</thead><tbody>${body.join("")}</tbody></table>`;
}

/** Lines of a node's text; line breaks and indents stay. */
export function drawText(lines) {
  return `<pre>${escapeText(lines.join("\n"))}</pre>`;
}

/** What an output message of one of our nodes shows: meter, conflicts, plan, table, text, in this order; null for each that it has not. */
export function parts(message) {
  return {
    report: message?.wan22_report?.[0] ?? null,
    conflicts: message?.wan22_conflicts?.[0] ?? null,
    plan: message?.wan22_plan?.[0] ?? null,
    table: message?.wan22_table?.[0] ?? null,
    text: message?.text?.length ? [message.text].flat() : null,
  };
}
