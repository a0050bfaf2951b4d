/** Recipe Load in the page: files dropped on it, and a button and menu entry for those who do not drag. */
import { app } from "../../scripts/app.js";

import { bringsFiles, fill, recipeFiles } from "./recipe.js";

const NODE = "Wan22RecipeLoad";
const LABEL = "Load recipe from model or file";

async function take(node, files) {
  const { filled, errors } = await fill(node, files);
  const toast = (severity, detail) => app.extensionManager.toast.add({ severity, summary: "Recipe", detail, life: 6000 });
  if (filled.length) toast("success", `read into ${filled.join(" and ")}`);
  for (const error of errors) toast("error", error);
  node.graph?.setDirtyCanvas?.(true, true);
}

function choose(node) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", accept: ".safetensors,.json", multiple: true });
  input.addEventListener("change", () => take(node, recipeFiles(input.files)));
  input.click();
}

/** In the classic canvas the text fields lie over it and get the drop themselves; Nodes 2.0 hands it on to the node. */
function onText(node, element) {
  element.addEventListener("dragover", (event) => bringsFiles(event) && event.preventDefault());
  element.addEventListener("drop", (event) => {
    const files = recipeFiles(event.dataTransfer?.files);
    if (!files.length) return;
    event.preventDefault(); // the page leaves it alone then
    take(node, files);
  });
}

app.registerExtension({
  name: "Wan22Master.Recipe",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const button = node.addWidget("button", LABEL, null, () => choose(node), { serialize: false });
    button.serialize = false; // values of widgets are stored by position
    node.onDragOver = bringsFiles;
    node.onDragDrop = async (event) => {
      const files = recipeFiles(event.dataTransfer?.files);
      if (!files.length) return false; // an image or a workflow: the page's own business
      await take(node, files);
      return true;
    };
    for (const { element } of node.widgets) if (element) onText(node, element);
  },
  getNodeMenuItems(node) {
    return node.comfyClass === NODE ? [{ content: LABEL, callback: () => choose(node) }] : [];
  },
});
