/** Recipe texts out of dropped or chosen files: a recipe file, or the header of a finished model. Pure: no DOM, no app. */

const ENTRY = "wan22_master";
const LARGEST_HEADER = 100_000_000; // bytes, as the safetensors library allows
const LARGEST_RECIPE = 8 << 20;
const SHOWN_ELSEWHERE = new Set(["passes", "before"]); // of the entry; the recipe says the same in full
const LOW = /(^|[^a-z])low(?![a-z])|(^|[^a-z])low(?=[-_ ]?noise)|Low(?![a-z])|LowNoise/;

/** JSON of a safetensors header, from a File or Blob of any size: two slices are read, never a tensor. */
export async function readHeader(file) {
  const first = await file.slice(0, 8).arrayBuffer();
  if (first.byteLength < 8) throw new Error(`${file.name}: no safetensors file: it has ${first.byteLength} bytes`);
  const length = new DataView(first).getBigUint64(0, true);
  if (length > BigInt(LARGEST_HEADER) || 8n + length > BigInt(file.size)) throw new Error(`${file.name}: no safetensors file`);
  const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.slice(8, 8 + Number(length)).arrayBuffer());
  return JSON.parse(text);
}

/** {text, widget} for one file: what to write, and in which of the two widgets. Throws an Error that says what is wrong. */
export async function recipeOf(file) {
  if (file.name.toLowerCase().endsWith(".safetensors")) return ofModel(file.name, await readHeader(file));
  if (file.size > LARGEST_RECIPE) throw new Error(`${file.name}: too large for a recipe`);
  const text = await file.text();
  return { text, widget: isOriginal(text) && LOW.test(file.name) ? "text_low" : "text" };
}

/** A recipe of the original Action-Master is for one expert, which its file name tells; ours tells it inside. */
function isOriginal(text) {
  return /"pipeline"\s*:/.test(text);
}

function ofModel(name, header) {
  const entry = header.__metadata__?.[ENTRY];
  if (entry === undefined) throw new Error(`${name}: holds no recipe: it was saved by something else, or with metadata none`);
  const told = JSON.parse(entry);
  if (!told.recipe) throw new Error(`${name}: was saved by a first version, which kept no recipe in the file`);
  const kept = Object.fromEntries(Object.entries(told).filter(([key]) => !SHOWN_ELSEWHERE.has(key)));
  return { text: JSON.stringify(kept, null, 1), widget: told.expert === "low_noise" ? "text_low" : "text" };
}

/** True when this drag may bring a file of ours: while it hovers, the page tells kinds only, no names. */
export function bringsFiles(event) {
  return [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file") || !!event.dataTransfer?.types?.includes?.("Files");
}

/** The dropped files that may hold a recipe. */
export function recipeFiles(files) {
  return [...(files ?? [])].filter(({ name }) => /\.(safetensors|json)$/i.test(name));
}

/** Write what files say into a node's widgets; the other widget is emptied unless it gets a text too. Returns {filled, errors}. */
export async function fill(node, files) {
  const texts = {}, errors = [];
  for (const file of files) {
    try {
      const { text, widget } = await recipeOf(file);
      if (widget in texts) throw new Error(`${file.name}: for the same expert as the file before it`);
      texts[widget] = text;
    } catch (error) {
      errors.push(error instanceof SyntaxError || error instanceof TypeError ? `${file.name}: its header is no JSON` : error.message);
    }
  }
  const names = Object.keys(texts);
  for (const name of names) set(node, name, texts[name]);
  if (names.length === 1 && names[0] === "text" && !isHalf(texts.text)) set(node, "text_low", ""); // a whole pair's recipe stands alone
  return { filled: names, errors };
}

/** True for a text that is for the high-noise expert alone, beside which a low-noise one may stay. */
function isHalf(text) {
  return isOriginal(text) || /"expert"\s*:\s*"high_noise"/.test(text);
}

function set(node, name, value) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}
