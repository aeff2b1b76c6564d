// Colours: of the theme the picture stands in, and the ramp that says how much was read.

import { BANK, PAGES, SINK } from "./model.js";

// From barely anything to everything, as OKLab lightness, green-red and blue-yellow. Lightness runs evenly away from the
// ground, and hue between blue and yellow, which the common forms of colour blindness keep apart.
const DARK_RAMP = [
  [0.3, -0.01, -0.1],
  [0.47, -0.035, -0.115],
  [0.64, -0.045, -0.03],
  [0.8, -0.005, 0.11],
  [0.92, -0.01, 0.165],
];
const LIGHT_RAMP = [
  [0.95, -0.01, 0.045],
  [0.83, -0.03, 0.075],
  [0.66, -0.05, 0.0],
  [0.48, -0.035, -0.1],
  [0.3, -0.01, -0.11],
];
const STEPS = 256;

/** Colours of the theme around an element, and whether it is dark. */
export function readTheme(element) {
  const style = getComputedStyle(element);
  const named = (names, otherwise) => names.map((name) => style.getPropertyValue(name).trim()).find(Boolean) ?? otherwise;
  // Of the theme's grounds the one that is furthest from grey: colours need a ground that is clearly dark or clearly light.
  const grounds = ["--comfy-input-bg", "--comfy-menu-bg"].map((name) => named([name], "#222"));
  const ground = grounds.sort((a, b) => Math.abs(luminance(toRgb(b)) - 0.5) - Math.abs(luminance(toRgb(a)) - 0.5))[0];
  const dark = luminance(toRgb(ground)) < 0.4;
  return {
    dark,
    ground,
    text: named(["--fg-color", "--input-text"], dark ? "#eee" : "#222"),
    quiet: named(["--descrip-text"], dark ? "#999" : "#666"),
    line: named(["--border-color"], dark ? "#4e4e4e" : "#ccc"),
    accent: dark ? "#f5d76e" : "#1d3f8a",
    veto: dark ? "#ff9d7a" : "#b3361b",
    font: style.fontFamily || "sans-serif",
  };
}

/** The ramp of a theme: 256 colours `[red, green, blue]`, from barely read to wholly read. */
export function makeRamp(dark) {
  const anchors = dark ? DARK_RAMP : LIGHT_RAMP;
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (anchors.length - 1);
    const from = Math.min(anchors.length - 2, Math.floor(place));
    return fromOklab(anchors[from].map((value, i) => value + (anchors[from + 1][i] - value) * (place - from)));
  });
}

/** Where an amount lies on the ramp, 0 to 1. Its root is taken, so that a hundredth is still seen. */
export function rampPlace(amount) {
  return Math.sqrt(Math.min(1, Math.max(0, amount)));
}

/**
 * The colour `[red, green, blue]` of a reading: the ramp for what was chosen, greys for what is always read. Where cells are
 * too small for marks, the sink is told by stripes: every second pixel is darker (`stripe`).
 */
export function colourOf(kind, amount, ramp, dark, stripe = false) {
  if (kind === BANK || kind === PAGES) return ramp[rampStep(amount)];
  const strength = 0.35 + 0.65 * rampPlace(amount);
  if (kind === SINK) return grey(dark, (stripe ? 0.22 : 0.62) * strength);
  return grey(dark, 0.4 * strength);
}

/** Which of the ramp's colours an amount has. */
export function rampStep(amount) {
  return Math.round(rampPlace(amount) * (STEPS - 1));
}

/** A colour as CSS. */
export function css([red, green, blue], alpha = 1) {
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

/** A colour of CSS in the forms that themes use: `#rgb`, `#rrggbb`, `rgb(...)`. */
export function toRgb(colour) {
  const hex = /^#([0-9a-f]{3,8})$/i.exec(colour)?.[1];
  if (hex) {
    const digits = hex.length < 6 ? [...hex].map((digit) => digit + digit).join("") : hex;
    return [0, 2, 4].map((at) => Number.parseInt(digits.slice(at, at + 2), 16));
  }
  const parts = colour.match(/[0-9.]+/g)?.map(Number) ?? [];
  return parts.length >= 3 ? parts.slice(0, 3) : [34, 34, 34];
}

function grey(dark, strength) {
  const value = Math.round(dark ? 45 + 175 * strength : 235 - 175 * strength);
  return [value, value, Math.round(value + (dark ? 6 : 4))];
}

function luminance([red, green, blue]) {
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
}

/** OKLab to sRGB bytes, after Bjorn Ottosson, "A perceptual color space for image processing" (2020). */
function fromOklab([lightness, a, b]) {
  const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short,
  ].map((linear) => {
    const light = Math.min(1, Math.max(0, linear));
    return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
  });
}
