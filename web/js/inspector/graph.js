// Ways through a workflow's graph, against the links and through subgraphs: from an inspector to the sampler that its trace
// comes from, and on to the storyboard. Only for the node; the offline page has no graph.

const SUBGRAPH_INPUT = "-10"; // the id that links inside a subgraph have for what comes from outside
const BYPASSED = 4;
const TEXT_FIELD = "customtext"; // the page's name for a field of several lines
const SAMPLER = "LongReelChunkedARSampler";
const STORYBOARD = "LongReelStoryboard";

/** Every node of a type with the subgraph nodes around it, outermost first: `[{node, owners}]`. */
export function nodesOfType(graph, type, owners = []) {
  return (graph?.nodes ?? []).flatMap((node) => {
    const inside = node.subgraph ? nodesOfType(node.subgraph, type, [...owners, node]) : [];
    return typeOf(node) === type ? [{ node, owners }, ...inside] : inside;
  });
}

/** The id of a node in an execution: `7`, or `12:7` inside of subgraph node 12. */
export function executionId({ node, owners }) {
  return [...owners, node].map(({ id }) => id).join(":");
}

/** The id under which the page keeps a node's outputs: that of its subgraph's definition stands before it. */
export function locatorId(node, rootGraph) {
  return node.graph && node.graph !== rootGraph ? `${node.graph.id}:${node.id}` : String(node.id);
}

/** The sampler whose trace an inspector shows, null for none. */
export function inspectedSampler(inspector) {
  const found = sourceOf(inspector, "trace");
  return found && typeOf(found.node) === SAMPLER ? found : null;
}

/**
 * The widget that holds the text of a sampler's storyboard, with its node: `{owner, widget}`; null for none to write to, as
 * where the text is put together from several fields, or changed on its way.
 */
export function storyboardText(sampler) {
  const board = sampler && sourceOf(sampler, "storyboard");
  if (!board || typeOf(board.node) !== STORYBOARD) return null;
  const input = linkedInput(board.node, "text");
  if (!input) return textField(board.node, "text");
  const text = follow(board.owners, board.node.graph, input.link);
  if (!text) return null;
  if (text.slot) return textField(text.node, text.slot.widget?.name ?? text.slot.name);
  const fields = (text.node.widgets ?? []).filter(({ type }) => type === TEXT_FIELD);
  return fields.length === 1 && !linkedInput(text.node, fields[0].name) ? textField(text.node, fields[0].name) : null;
}

function textField(owner, name) {
  const widget = owner.widgets?.find((other) => other.name === name);
  return typeof widget?.value === "string" ? { owner, widget } : null;
}

/** The input of that name, where something is linked to it: its widget says nothing then. */
function linkedInput(node, name) {
  return node.inputs?.find((input) => input.link != null && (input.widget?.name ?? input.name) === name);
}

function sourceOf({ node, owners }, name) {
  const input = node.inputs?.find((slot) => slot.name === name);
  return follow(owners, node.graph, input?.link);
}

/**
 * Where a link comes from: `{node, owners}`; with a `slot` where it comes from a subgraph's input that nothing is linked to,
 * whose value is then a widget of the subgraph's node.
 */
function follow(owners, graph, id) {
  const link = id == null ? null : (graph.getLink?.(id) ?? graph.links?.[id]);
  if (!link) return null;
  if (String(link.origin_id) === SUBGRAPH_INPUT) {
    const owner = owners.at(-1);
    const slot = owner?.inputs?.[link.origin_slot];
    if (!slot) return null;
    if (slot.link == null) return { node: owner, owners: owners.slice(0, -1), slot };
    return follow(owners.slice(0, -1), owner.graph, slot.link);
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node) return null;
  if (node.subgraph) {
    return follow([...owners, node], node.subgraph, node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
  }
  if (node.type !== "Reroute" && node.mode !== BYPASSED) return { node, owners };
  const through = node.inputs?.find((slot) => slot.link != null && (node.type === "Reroute" || slot.type === link.type));
  return follow(owners, graph, through?.link);
}

function typeOf(node) {
  return node.comfyClass ?? node.type;
}
