// How the picture's page elements look. Colours are those of the theme; --longreel-* are set by the view.

export const STYLE = `
.longreel-inspector { position: relative; width: 100%; height: 100%; min-height: 320px; contain: layout size; overflow: hidden;
  display: flex; flex-direction: column; box-sizing: border-box; border-radius: 8px; padding: 8px; gap: 6px;
  background: var(--longreel-ground); color: var(--longreel-text); font-size: 12px; line-height: 1.4; text-align: left; }
.longreel-inspector * { box-sizing: border-box; }
.longreel-inspector [hidden] { display: none !important; }
.longreel-bar-top { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; min-height: 24px; }
.longreel-name { font-weight: 600; max-width: 16em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.longreel-filters { display: inline-flex; gap: 6px; }
.longreel-push { margin-left: auto; }
.longreel-choice, .longreel-button, .longreel-kind, .longreel-menu-item, .longreel-row-button { font: inherit; color: inherit;
  background: transparent; border: 1px solid var(--longreel-line); border-radius: 5px; padding: 2px 8px; cursor: pointer; margin: 0; }
.longreel-choice { background: var(--longreel-ground); }
.longreel-choice option { background: var(--longreel-ground); color: var(--longreel-text); }
.longreel-kind { display: inline-flex; align-items: center; gap: 5px; }
.longreel-kind[aria-pressed="false"] { opacity: .45; text-decoration: line-through; }
.longreel-inspector button:hover { background: color-mix(in srgb, var(--longreel-text) 12%, transparent); }
.longreel-inspector :focus-visible { outline: 2px solid var(--longreel-accent); outline-offset: 1px; }
.longreel-scale { display: inline-flex; align-items: center; gap: 5px; color: var(--longreel-quiet); }
.longreel-scale i { width: 84px; height: 10px; border-radius: 2px; background: var(--longreel-ramp); }
.longreel-body { flex: 1; min-height: 0; display: flex; gap: 10px; }
.longreel-stage { position: relative; flex: 1; min-width: 0; min-height: 0; border-radius: 4px; cursor: crosshair; }
.longreel-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.longreel-stage:focus-visible { outline-offset: -2px; }
.longreel-empty { position: absolute; inset: 0; display: grid; place-items: center; color: var(--longreel-quiet); text-align: center;
  padding: 20px; white-space: pre-line; }
.longreel-details { width: 214px; flex: none; display: flex; flex-direction: column; gap: 4px; min-height: 0; overflow: hidden;
  overflow-wrap: anywhere; }
.longreel-thumbnail { width: 100%; max-height: 130px; object-fit: contain; border-radius: 4px; flex: none;
  background: rgba(0, 0, 0, .35); image-rendering: auto; }
.longreel-title { font-weight: 600; flex: none; }
.longreel-lines { color: var(--longreel-quiet); flex: none; max-height: 13.5em; overflow: hidden; }
.longreel-lines > div:first-child { color: var(--longreel-text); }
.longreel-lines > div { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.longreel-buttons { display: flex; gap: 6px; flex: none; padding-bottom: 4px; }
.longreel-button[aria-pressed="true"] { border-color: var(--longreel-accent); color: var(--longreel-accent); }
.longreel-list { flex: 1; min-height: 0; overflow-y: auto; scrollbar-width: thin; }
.longreel-row { color: var(--longreel-quiet); }
.longreel-row-button { display: flex; align-items: center; gap: 6px; width: 100%; border: 0; padding: 1px 3px; text-align: left;
  font-variant-numeric: tabular-nums; }
.longreel-when { flex: 1; white-space: nowrap; color: var(--longreel-text); }
.longreel-bar { width: 34px; height: 6px; border-radius: 3px; flex: none; overflow: hidden;
  background: color-mix(in srgb, var(--longreel-text) 15%, transparent); }
.longreel-bar::after { content: ""; display: block; height: 100%; width: calc(var(--amount) * 100%); background: var(--longreel-accent); }
.longreel-share { width: 40px; flex: none; text-align: right; white-space: nowrap; }
.longreel-mark { width: 11px; height: 11px; flex: none; display: inline-block; background: var(--longreel-quiet); }
.longreel-square { clip-path: inset(2px); }
.longreel-stripes { background: repeating-linear-gradient(var(--longreel-quiet) 0 2px, transparent 2px 4px); }
.longreel-diamond { clip-path: polygon(50% 0, 100% 50%, 50% 100%, 0 50%); background: var(--longreel-accent); }
.longreel-dot { clip-path: circle(34%); background: var(--longreel-middle); }
.longreel-status { min-height: 1.4em; flex: none; color: var(--longreel-text); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.longreel-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.longreel-menu { position: absolute; z-index: 5; display: flex; flex-direction: column; padding: 4px; border-radius: 6px;
  background: var(--longreel-ground); border: 1px solid var(--longreel-line); box-shadow: 0 4px 16px rgba(0, 0, 0, .4); max-width: 300px; }
.longreel-menu-item { border: 0; text-align: left; padding: 4px 10px; }
.longreel-narrow .longreel-body { flex-direction: column; }
.longreel-narrow .longreel-details { width: 100%; height: 128px; display: grid; grid-template-columns: 150px 1fr;
  grid-auto-rows: min-content; column-gap: 10px; overflow-y: auto; }
.longreel-narrow .longreel-thumbnail { grid-row: span 4; max-height: 110px; }
.longreel-narrow .longreel-details > :not(.longreel-thumbnail) { grid-column: 2; }
.longreel-narrow .longreel-list { overflow: visible; }
`;
