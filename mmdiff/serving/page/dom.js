// Elements, and what the server is asked. Texts only ever become text: nothing here writes HTML.

export function el(tag, props = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (name in found && typeof value !== "string") found[name] = value;
    else found.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

export const byId = (id) => document.getElementById(id);
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export function fail(line) {
  const at = byId("error");
  at.textContent = line;
  at.hidden = !line;
}

export const announce = (line) => { byId("status").textContent = line; };

// An error whose message is the one line that the server has sent.
export class Refused extends Error {
  constructor(line, status) {
    super(line);
    this.status = status;
  }
}

export class Server {
  constructor(base = "") {
    this.base = base;
  }

  get token() {
    return sessionStorage.getItem(`token ${this.base}`) || "";
  }

  set token(value) {
    sessionStorage.setItem(`token ${this.base}`, value);
  }

  async fetch(path, body, signal) {
    const headers = this.token ? { authorization: `Bearer ${this.token}` } : {};
    const options = { signal, headers };
    if (body !== undefined) {
      options.method = "POST";
      options.body = JSON.stringify(body);
      headers["content-type"] = "application/json";
    }
    let answer;
    try {
      answer = await fetch(this.base + path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(`${this.base || location.origin} does not answer`, 0);
    }
    if (!answer.ok) throw Object.assign(new Refused(await lineOf(answer), answer.status), { server: this });
    return answer;
  }

  async json(path, body, signal) {
    return (await this.fetch(path, body, signal)).json();
  }

  // The events of a stream, each as an object, until [DONE].
  async *events(path, body, signal) {
    const answer = await this.fetch(path, body, signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { done: true }; // the connection broke
      });
      if (done) throw new Refused("the server stopped before the answer was whole", 0);
      text += value;
      const pieces = text.split("\n\n");
      text = pieces.pop();
      for (const piece of pieces) {
        const line = piece.replace(/^data: /, "");
        if (line === "[DONE]") return;
        const event = JSON.parse(line);
        if (event.error) throw new Refused(said(event), 200);
        yield event;
      }
    }
  }
}

const said = (body) => (typeof body.error === "string" ? body.error : body.error.message);

async function lineOf(answer) {
  try {
    return said(await answer.json());
  } catch {
    return `the server answered with status ${answer.status}`;
  }
}
