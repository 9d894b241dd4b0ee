// The page: what is served decides what it shows; panels ask, side by side.

import { legend, view } from "./canvas.js";
import { byId, el, fail, Refused, Server } from "./dom.js";
import { Inputs, modeOf } from "./modes.js";
import { Panel } from "./panel.js";
import { Robot, RobotInputs } from "./robot.js";

const sources = [{ server: new Server() }]; // this server, and one beside it, each with its `health`
const panels = [];
let inputs, mode;
let asking = null; // the source whose token is asked for
let current = null; // what runs now: one thing at a time
let stopped = false;

function failed(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && error.status === 401) return void askToken(sources.find((one) => one.server === error.server));
  fail(error instanceof Refused || error.constructor === Error ? error.message : `the page failed: ${error.message}`);
  if (!(error instanceof Refused) && error.constructor !== Error) console.error(error);
}

// Run what the person has asked for, unless something runs already; errors become the line at the top.
function run(work) {
  if (current) return current;
  fail("");
  stopped = false;
  current = Promise.resolve().then(work).catch(failed).finally(() => { current = null; changed(); });
  changed();
  return current;
}

function changed() {
  const running = current !== null;
  inputs.stop.hidden = !running;
  inputs.send.disabled = running;
  if (inputs.all) inputs.all.disabled = running;
  byId("legend").replaceChildren(...legend(Math.max(...panels.map((panel) => panel.steps))));
}

function pin(article) {
  const remove = el("button", { type: "button", className: "plain", "aria-label": "Remove this pinned result", onclick: () => { article.remove(); shelf(); } }, "✕");
  article.prepend(remove);
  byId("pinned").querySelector("div").append(article);
  shelf();
}

const shelf = () => { byId("pinned").hidden = !byId("pinned").querySelector("article"); };

function addPanel(source) {
  const name = "AB"[panels.length];
  const panel = new Panel(source, mode, inputs.conversation, name, { pin, changed, run });
  if (name === "B" && sources.length > 1) panel.title.append(choice(source));
  else if (sources.length > 1) panel.title.append(` · ${source.health.model}`);
  panel.pace = Number(byId("pace").value);
  panels.push(panel);
  byId("panels").append(panel.root);
  if (mode === "robot") {
    panel.robot = new Robot(panel, inputs, { run });
    return panel.robot.reset().catch(failed);
  }
  return null;
}

// Which server the second panel asks.
function choice(source) {
  const options = sources.map((one) => el("option", { selected: one === source }, one.health.model + (one.server.base ? ` at ${one.server.base}` : "")));
  const select = el("select", { "aria-label": "Server of panel B" }, ...options);
  select.addEventListener("change", async () => {
    await clear();
    panels.pop().root.remove();
    addPanel(sources[select.selectedIndex])?.then(changed);
    changed();
  });
  return select;
}

// Ask the server beside this one what it is, once. Throws Refused, or an Error where it reads something else.
async function lookBeside() {
  const address = sources[0].health.beside;
  if (!address || sources.length > 1) return;
  const source = { server: new Server(address) };
  source.health = await source.server.json("/health").catch((error) => {
    if (error.status !== 401) throw error;
    askToken(source);
    return null;
  });
  if (!source.health) return;
  if (modeOf(source.health) !== mode) throw new Error(`${address}: ${source.health.task} reads other rows than ${sources[0].health.task}, so that they cannot be compared`);
  sources.push(source);
}

const every = (work) => Promise.all(panels.map(work));

// Send what is in the input to every panel, at the same time.
async function send() {
  if (current) return;
  await run(async () => {
    if (mode === "robot") return void (await every((panel) => panel.robot.chunk()));
    const asked = inputs.asked();
    const turns = await settled(panels.map((panel) => panel.ask(asked)));
    if (turns.some(Boolean)) inputs.sent();
  });
  inputs.text?.focus({ preventScroll: true });
}

// All results, after every panel has come to an end; the first error is thrown then.
async function settled(works) {
  const found = await Promise.allSettled(works);
  const wrong = found.find((one) => one.status === "rejected");
  if (wrong) throw wrong.reason;
  return found.map((one) => one.value);
}

const toTheEnd = () => run(() => every(async (panel) => {
  if (panel.robot.world.over) await panel.robot.again();
  while (!stopped && (await panel.robot.chunk()));
}));

function stop() {
  stopped = true;
  panels.forEach((panel) => panel.stop());
}

async function clear() {
  stop();
  await current;
  fail("");
  if (mode === "robot") return void run(() => every((panel) => panel.robot.reset()));
  panels.forEach((panel) => panel.clear());
  inputs.text.focus();
  return changed();
}

async function compare() {
  const on = panels.length === 1;
  if (on) {
    fail("");
    await lookBeside().catch(failed);
    if (asking || panels.length > 1) return;
  }
  byId("compare").setAttribute("aria-pressed", String(on));
  if (on) {
    if (sources.length > 1 && panels[0].title.childNodes.length === 1) panels[0].title.append(` · ${sources[0].health.model}`);
    addPanel(sources.at(-1))?.then(changed);
  } else {
    const gone = panels.pop();
    gone.stop();
    gone.root.remove();
  }
  document.body.classList.toggle("two", on);
  changed();
}

function repaint() {
  panels.forEach((panel) => panel.repaint());
  for (const article of byId("pinned").querySelectorAll("article")) article.canvas.repaint();
  changed();
}

function theme(choice) {
  const dark = choice ? choice === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  view.dark = dark;
}

function askToken(source) {
  const dialog = byId("token");
  asking = source;
  byId("token-title").textContent = `${source.server.base || "This server"} asks for a token`;
  byId("token-error").textContent = source.server.token ? "That is not the token of this server." : "";
  if (!dialog.open) dialog.showModal();
}

async function begin() {
  let health;
  try {
    health = sources[0].health = await sources[0].server.json("/health");
  } catch (error) {
    return failed(error);
  }
  mode = modeOf(health);
  document.title = `${health.model} · mmdiff`;
  byId("name").textContent = health.model;
  byId("about").textContent = [health.task, ...health.media, `${size(health.parameters)} parameters`].join(" · ");
  inputs = mode === "robot" ? new RobotInputs(health, { reset: () => clear() }) : new Inputs(health, send);
  byId("ask").replaceChildren(...inputs.root);
  inputs.stop.addEventListener("click", stop);
  inputs.clear.addEventListener("click", clear);
  inputs.all?.addEventListener("click", toTheEnd);
  addPanel(sources[0]);
  changed();
  if (matchMedia("(hover: hover)").matches) inputs.text.focus();
  return null;
}

const size = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(1)} B` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : `${Math.round(n / 1e3)} k`);

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("compare").addEventListener("click", () => inputs && compare());
byId("colour").addEventListener("change", (event) => { view.colour = event.target.value; repaint(); });
byId("numbers").addEventListener("change", (event) => { view.numbers = event.target.checked; repaint(); });
byId("pace").addEventListener("change", (event) => panels.forEach((panel) => { panel.pace = Number(event.target.value); }));
byId("theme").addEventListener("click", () => {
  const next = view.dark ? "light" : "dark";
  localStorage.setItem("theme", next);
  theme(next);
  if (inputs) repaint();
});
byId("token").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { server } = asking;
  asking = null;
  server.token = event.target.elements.token.value.trim();
  event.target.reset();
  byId("token").close();
  fail("");
  if (!inputs) begin();
  else if (server.base && panels.length === 1) compare();
});
byId("token").addEventListener("cancel", () => { asking = null; fail("authorization: this server asks for a token; load the page again to enter it"); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && current) stop(); });
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])][0];
  const picker = inputs?.pickers?.find((one) => one.accepts(file));
  if (picker) { event.preventDefault(); picker.take(file); }
});
for (const name of ["dragover", "drop"]) { // a file dropped beside a field is taken by the field that reads it
  document.addEventListener(name, (event) => {
    event.preventDefault();
    const file = event.dataTransfer?.files?.[0];
    if (name === "drop") inputs?.pickers?.find((one) => one.accepts(file))?.take(file);
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { theme(localStorage.getItem("theme")); if (inputs) repaint(); });
theme(localStorage.getItem("theme"));
begin();
