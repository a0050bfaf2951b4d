/** The pack's part of the page: results on the nodes, colours, and what happens when a file is saved. Knows only versioned JSON. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

import { addStyle, show } from "./view.js";

const SOCKETS = {
  W22_DIT: "#E8A33D", W22_LORA_STACK: "#8FBF5A", W22_RECIPE: "#5E8F3A", W22_JOB: "#E06C75", W22_FILE: "#56B6C2",
  W22_PLAN: "#B57EDC", W22_SCALES: "#7EA6DC", W22_CALIB: "#4DB6AC",
};
const MERGE = "#4a3b1f", QUANTIZE = "#38284a", SAVE = "#4a2326", CALIBRATE = "#1f403c";
const NODES = {
  Wan22LoadDualDiT: "#33393f", Wan22LoraPair: MERGE, Wan22LoraList: MERGE, Wan22ImportLoraStack: MERGE, Wan22ActionMasterInject: MERGE,
  Wan22MergeCheckpoints: MERGE, Wan22RecipeLoad: MERGE, Wan22RecipeSave: MERGE, Wan22LoraAnalysis: MERGE, Wan22StabilityMeter: MERGE,
  Wan22MergePreview: MERGE, Wan22SplitStep: MERGE, Wan22PrecisionPlan: QUANTIZE, Wan22InputScales: QUANTIZE, Wan22Quantize: QUANTIZE,
  Wan22SaveModel: SAVE, Wan22LoadSaved: SAVE, Wan22Inspect: SAVE, Wan22LoraConvert: SAVE, Wan22LoraMerge: SAVE, Wan22LoraExtract: SAVE, Wan22LoraGated: SAVE,
  Wan22PromptList: CALIBRATE, Wan22Calibrate: CALIBRATE, Wan22CalibrationSummary: CALIBRATE, Wan22Sensitivity: CALIBRATE,
};
const NARROWEST = {
  Wan22StabilityMeter: 420, Wan22LoraAnalysis: 440, Wan22SaveModel: 460, Wan22ActionMasterInject: 380, Wan22LoadDualDiT: 400,
  Wan22LoraPair: 360, Wan22LoraList: 420, Wan22ImportLoraStack: 360, Wan22Quantize: 380, Wan22MergeCheckpoints: 360, Wan22RecipeLoad: 420, Wan22RecipeSave: 360,
  Wan22MergePreview: 380, Wan22LoraConvert: 380, Wan22LoraMerge: 380, Wan22LoraExtract: 380, Wan22LoraGated: 360,
  Wan22PrecisionPlan: 440, Wan22InputScales: 380, Wan22Inspect: 420,
  Wan22PromptList: 420, Wan22Calibrate: 380, Wan22CalibrationSummary: 620, Wan22Sensitivity: 580,
};

const LEAST = 60;

function colourSockets() {
  for (const [type, colour] of Object.entries(SOCKETS)) {
    app.canvas.default_connection_color_byType[type] = colour;
    (app.canvas.constructor.link_type_colors ?? {})[type] = colour;
  }
}

/** A palette clears the colours of types it does not know, at the start too, so they are set again with every node. */
function colourNode(node) {
  colourSockets();
  node.color = NODES[node.comfyClass];
  // Nodes 2.0 hides advanced widgets and grows a node to what it shows; the canvas counts them all.
  const height = globalThis.LiteGraph?.vueNodesMode ? LEAST : node.size[1];
  node.setSize([Math.max(node.size[0], NARROWEST[node.comfyClass] ?? 0), height]);
}

/** Locator ids are `<subgraph uuid>:<node id>`, or the id alone in the root graph. */
function nodeAt(locator) {
  const [id, uuid] = String(locator).split(":").reverse();
  const graph = uuid ? app.rootGraph?.subgraphs?.get(uuid) : app.rootGraph ?? app.graph;
  return graph?.getNodeById(Number.isNaN(Number(id)) ? id : Number(id)) ?? null;
}

async function tellSaved({ detail: { files, folder } }) {
  app.extensionManager.toast.add({ severity: "success", summary: `Saved in ${folder}`, detail: files.join("\n"), life: 8000 });
  await app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
}

app.registerExtension({
  name: "Wan22Master",
  setup() {
    addStyle();
    const sheet = document.createElement("style");
    sheet.textContent = `:root { ${Object.entries(SOCKETS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`).join(" ")} }`;
    document.head.append(sheet);
    app.ui.settings.addEventListener("Comfy.ColorPalette.change", () => setTimeout(colourSockets));
    api.addEventListener("wan22_master.saved", tellSaved);
  },
  nodeCreated(node) {
    if (!(node.comfyClass in NODES)) return;
    colourNode(node);
    const before = node.onExecuted;
    node.onExecuted = function (message) {
      before?.call(this, message);
      show(this, message);
    };
  },
  afterConfigureGraph() {
    colourSockets();
  },
  onNodeOutputsUpdated(outputs) {
    for (const [locator, message] of Object.entries(outputs)) {
      const node = nodeAt(locator);
      if (node && node.comfyClass in NODES) show(node, message);
    }
  },
});
