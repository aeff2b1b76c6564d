// The Memory Inspector in ComfyUI's page: puts the picture on the node, feeds it, and writes pins into the storyboard.
// The only file that knows ComfyUI; everything else is in inspector/.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { executionId, inspectedSampler, locatorId, nodesOfType, storyboardText } from "./inspector/graph.js";
import { InspectorView, embeddedImage } from "./inspector/view.js";

const NODE = "LongReelMemoryInspector";
const WIDGET = "LONGREEL_MEMORY_VIEW"; // no name of a built-in widget, which would replace it in Nodes 2.0
const LEAST_HEIGHT = 420;
const FIRST_SIZE = [980, 760];
const views = new WeakMap(); // by node
const shown = new WeakMap(); // inspections by view
const left = new Map(); // elements of nodes that were taken away, by where the nodes were

function rootGraph() {
  return app.rootGraph ?? app.graph;
}

function inspectors() {
  return nodesOfType(rootGraph(), NODE);
}

/**
 * Undo makes all nodes anew, but Nodes 2.0 leaves the elements of the old ones on the screen where the ids are the same:
 * they make room for those of the nodes that are there now.
 */
function replaceOldElements() {
  for (const { node } of inspectors()) {
    const [old, view] = [left.get(locatorId(node, rootGraph())), views.get(node)];
    if (old?.isConnected && view && old !== view.root) old.replaceWith(view.root);
  }
  left.clear();
}

/** A picture that the server keeps, or one that lies in the message itself; nothing from anywhere else. */
function imageAddress(source) {
  return source.startsWith("/view?") ? api.apiURL(source) : embeddedImage(source);
}

/** The text of the storyboard that the node's film is made from. */
function storyboardOf(node) {
  const find = () => {
    const place = inspectors().find((inspector) => inspector.node === node);
    return place ? storyboardText(inspectedSampler(place)) : null;
  };
  return {
    read: () => find()?.widget.value ?? null,
    write: (text) => {
      const { owner, widget } = find();
      widget.value = text;
      widget.callback?.(text, app.canvas, owner);
      owner.graph?.setDirtyCanvas?.(true, true);
      const history = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
      if (history?.captureCanvasState) history.captureCanvasState();
      else history?.checkState?.();
    },
  };
}

function build(node) {
  if (!node.addDOMWidget) return; // an older page: the node still gives its image and its text
  const root = document.createElement("div");
  const view = new InspectorView(root, { imageAddress, storyboard: storyboardOf(node) });
  const widget = node.addDOMWidget("memory_view", WIDGET, root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => LEAST_HEIGHT,
    getValue: () => "",
    setValue() {},
  });
  widget.serialize = false;
  views.set(node, view);
  const { onRemoved, onExecuted } = node;
  node.onRemoved = function (...args) {
    left.set(locatorId(node, rootGraph()), root);
    view.destroy();
    return onRemoved?.apply(this, args);
  };
  node.onExecuted = function (...args) {
    onExecuted?.apply(this, args);
    restore(view, args[0]);
  };
  node.setSize?.([...FIRST_SIZE]);
}

/** Show what the node gave when it last ran; once only, for the page also tells it when other nodes have run. */
function restore(view, output) {
  const inspection = output?.longreel?.[0];
  if (inspection?.longreel_inspection !== 1 || shown.get(view) === inspection) return;
  shown.set(view, inspection);
  view.show(inspection);
}

app.registerExtension({
  name: "longreel.inspector",
  setup() {
    api.addEventListener("longreel.inspection", ({ detail }) => {
      for (const place of inspectors()) {
        const sampler = inspectedSampler(place);
        if (sampler && executionId(sampler) === String(detail.sampler)) views.get(place.node)?.grow(detail);
      }
    });
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) build(node);
  },
  afterConfigureGraph: replaceOldElements,
  onNodeOutputsUpdated(outputs) {
    for (const { node } of inspectors()) {
      const view = views.get(node);
      if (view) restore(view, outputs[locatorId(node, rootGraph())]);
    }
  },
});
