// The simulated robot: the same world in every panel, driven by the policy, by hand, or by the simulator's expert.

import { el, sleep } from "./dom.js";

export class RobotInputs {
  constructor(health, hooks) {
    this.health = health;
    this.conversation = false;
    this.task = el("select", { "aria-label": "Task", onchange: () => hooks.reset() }, ...health.world.tasks.map((task) => el("option", {}, task)));
    this.seed = el("input", { type: "number", min: "0", step: "1", value: "0", "aria-label": "Layout", inputmode: "numeric", onchange: () => hooks.reset() });
    this.text = el("input", { type: "text", "aria-label": "Instruction", autocomplete: "off", spellcheck: "false" });
    this.execute = el("input", { type: "number", min: "1", max: String(health.chunk), value: String(health.execute), "aria-label": "Actions to execute", inputmode: "numeric" });
    this.send = el("button", { type: "submit", className: "main" }, "One chunk");
    this.all = el("button", { type: "button", className: "main" }, "To the end");
    this.stop = el("button", { type: "button", className: "stop", hidden: true }, "Stop");
    this.clear = el("button", { type: "button", className: "plain" }, "Start again");
    this.next = el("button", { type: "button", className: "plain", onclick: () => { this.seed.valueAsNumber = this.number(this.seed, 0) + 1; hooks.reset(); } }, "Next layout");
    const field = (name, input) => el("label", { className: "field" }, name, input);
    this.root = [
      el("div", { className: "line robot-line" }, field("Task", this.task), field("Layout", this.seed), field("Instruction", this.text), field(`Execute of ${health.chunk}`, this.execute),
        el("div", { className: "go" }, this.send, this.all, this.stop)),
      el("div", { className: "under" }, this.clear, this.next),
    ];
  }

  number(input, otherwise) {
    return Number.isSafeInteger(input.valueAsNumber) && input.valueAsNumber >= 0 ? input.valueAsNumber : otherwise;
  }
}

export class Robot {
  // panel: where the policy is asked, and the world is shown.
  constructor(panel, inputs, hooks) {
    Object.assign(this, { panel, inputs, hooks, actions: [], world: null });
    this.picture = el("img", { alt: "", className: "world", tabindex: "0" });
    this.facts = el("p", { className: "facts", role: "status" });
    this.pad = el("div", { className: "pad", role: "group", "aria-label": "Drive by hand" });
    this.root = el("div", { className: "robot" }, this.picture);
    panel.log.before(this.root);
    this.root.append(el("div", {}, this.facts, this.pad, panel.log));
    panel.rewritten = (found) => this.instead(found.prediction);
    this.picture.addEventListener("keydown", (event) => this.key(event));
  }

  async post(actions, first = 0) {
    const body = { task: this.inputs.task.value, seed: this.inputs.number(this.inputs.seed, 0), actions, first };
    return this.panel.server.json("/world", body);
  }

  async reset() {
    this.panel.clear();
    this.take(await this.post([]));
    this.actions = [];
    this.inputs.text.value = this.world.row.instruction;
    this.build();
  }

  take(world) {
    this.world = world;
    const image = world.row.image;
    this.draw(Array.isArray(image) ? image[0] : image);
    const state = (world.row.state || []).map((v) => v.toFixed(2)).join(", ");
    const end = world.success ? "success" : world.over ? "over, without success" : "running";
    this.facts.textContent = `${world.steps} of ${world.max_steps} steps · ${end}${state ? ` · state ${state}` : ""}`;
    this.root.classList.toggle("success", world.success);
    this.picture.alt = `The world of ${world.task} after ${world.steps} steps: ${end}`;
  }

  draw(data) {
    this.picture.src = `data:image/png;base64,${data}`;
  }

  // Execute actions behind those that were; the pictures are shown one after the other.
  async act(actions) {
    if (this.world.over) throw new Error("the episode is over: start again, or take the next layout");
    const before = this.actions.length;
    const world = await this.post([...this.actions, ...actions], before);
    this.actions = [...this.actions, ...actions].slice(0, world.steps);
    for (const frame of world.frames) {
      this.draw(frame);
      await sleep(this.panel.pace || 80);
    }
    this.take(world);
    return world;
  }

  // Ask the policy for one chunk, and execute the first actions of it. Returns whether the episode goes on.
  async chunk() {
    if (this.world.over) await this.again();
    const row = { ...this.world.row, instruction: this.inputs.text.value };
    const found = await this.panel.ask({ row: () => row, said: "", media: [], around: (n) => this.rows(n) });
    if (!found) return false;
    this.before = [...this.actions];
    return !(await this.act(found.prediction.slice(0, this.execute))).over;
  }

  get execute() {
    return Math.max(1, this.inputs.number(this.inputs.execute, this.inputs.health.execute));
  }

  // Have a rewritten chunk executed in place of the last one.
  async instead(chunk) {
    this.actions = this.before;
    this.world = { ...this.world, over: false };
    await this.act(chunk.slice(0, this.execute));
  }

  // The tokens of an action on a line of their own, where each dimension has one.
  rows(n) {
    const { chunk, dims } = this.panel.health;
    return n === chunk * dims ? Array.from({ length: chunk }, () => [dims, "\n"]).flat() : [n];
  }

  async again() {
    this.actions = [];
    this.take(await this.post([]));
  }

  build() {
    const names = this.world.names.length ? this.world.names : this.panel.health.names;
    this.levers = names.map((name) => el("input", { type: "range", min: "-1", max: "1", step: "0.1", value: "0", "aria-label": name, title: name }));
    const button = (text, title, onclick) => el("button", { type: "button", className: "plain", title, onclick: () => this.hooks.run(onclick) }, text);
    this.pad.replaceChildren(
      ...this.levers.map((lever, i) => el("label", { className: "lever" }, names[i], lever)),
      button("Act", "Execute this action once; on the picture, arrow keys move the first two and the space bar flips the last", () => this.hand()),
      ...(this.world.expert ? [button("Expert", "The scripted expert's next action", () => this.act([this.world.expert]))] : []),
    );
  }

  hand() {
    return this.act([this.levers.map((lever) => lever.valueAsNumber)]);
  }

  key(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [];
    const last = this.levers[this.levers.length - 1];
    if (event.key === " ") last.valueAsNumber = last.valueAsNumber > 0 ? -1 : 1;
    else if (dx !== undefined) [this.levers[0].valueAsNumber, this.levers[1].valueAsNumber] = [dx, dy];
    else return;
    event.preventDefault();
    if (event.key === " ") [this.levers[0].valueAsNumber, this.levers[1].valueAsNumber] = [0, 0];
    this.hooks.run(() => this.hand());
  }
}
