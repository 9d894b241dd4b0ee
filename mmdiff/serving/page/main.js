// The page: what is served decides what it shows; panels ask, side by side.

import { legend, view } from "./canvas.js";
import { byId, el, fail, Refused, Server } from "./dom.js";
import { Inputs, modeOf } from "./modes.js";
import { Panel } from "./panel.js";
import { Robot, RobotInputs } from "./robot.js";

const server = new Server();
const panels = [];
let health, inputs, mode;
let current = null; // what runs now: one thing at a time
let stopped = false;

function failed(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && error.status === 401) return void askToken(true);
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

function addPanel() {
  const name = "AB"[panels.length];
  const panel = new Panel(server, health, mode, inputs.conversation, name, { pin, changed, run });
  panel.pace = Number(byId("pace").value);
  panels.push(panel);
  byId("panels").append(panel.root);
  if (mode === "robot") {
    panel.robot = new Robot(panel, inputs, { run });
    return panel.robot.reset().catch(failed);
  }
  return null;
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

function compare() {
  const on = panels.length === 1;
  byId("compare").setAttribute("aria-pressed", String(on));
  if (on) addPanel()?.then(changed);
  else {
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

function askToken(wrong) {
  const dialog = byId("token");
  byId("token-error").textContent = wrong && server.token ? "That is not the token of this server." : "";
  if (!dialog.open) dialog.showModal();
}

async function begin() {
  try {
    health = await server.json("/health");
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
  document.body.classList.add(`mode-${mode}`);
  addPanel();
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
  server.token = event.target.elements.token.value.trim();
  event.target.reset();
  byId("token").close();
  fail("");
  if (!health) begin();
});
byId("token").addEventListener("cancel", () => fail("authorization: this server asks for a token; load the page again to enter it"));
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
