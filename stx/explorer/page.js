// The explorer's page: what the kernel shows, and what the user asks for. Python's side is stx/explorer/widgets.py.
//
// Requests go one at a time; moves of one control that come meanwhile are one request. Controls follow the kernel's
// state when nothing is asked any more, so that nothing moves under a hand. All text is set as text, never as markup.

const STEPS = 24; // of a slider, on each side
const SILENT = 10_000; // ms without an answer, after which the kernel is asked about
const PART = 1_000_000; // bytes of an upload in a message
const STILL = 300; // ms without a change, after which the address has the recipe
const TYPED = 'input[type="number"], input[type="text"], textarea';

/** An element with properties, attributes ("aria-…", "role", "for", …), listeners (onclick, …) and children. */
function h(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in node && !name.includes("-")) node[name] = value;
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const title = (name) => (name.includes("_") ? name[0] + name.slice(1).replaceAll("_", " ").toLowerCase() : name);
const signed = (x) => (x === 0 ? "0" : (x > 0 ? "+" : "−") + Math.abs(x).toFixed(2));
const button = (text, action, hint = "") => h("button", { type: "button", onclick: action, title: hint }, text);
const kept = (name, aligned) => `stx-picture-${aligned ? "aligned-" : ""}${name}`;

/** One picture with its caption; `show` gives it a file, and its alternative text when that can be painted. */
function picture(kind, caption) {
  const image = h("img", { alt: "", draggable: false });
  const figure = h("figure", { className: kind }, image, h("figcaption", {}, caption));
  let file = "";
  const show = async (content, alt) => {
    const old = file;
    image.src = file = URL.createObjectURL(new Blob([content], { type: "image/png" }));
    if (old) URL.revokeObjectURL(old);
    const own = file;
    await image.decode().catch(() => {}); // of a picture that came too late
    if (own !== file) return;
    image.classList.toggle("coarse", image.naturalWidth < 256);
    image.alt = alt;
  };
  return { figure, image, show };
}

/** A probability before (tick) and after (bar). */
function probability() {
  const fill = h("i", { className: "fill" });
  const tick = h("i", { className: "tick" });
  const bar = h("span", { className: "bar", "aria-hidden": "true" }, fill, tick);
  const text = h("span", { className: "chance" });
  const show = (before, after) => {
    const flipped = before > 0.5 !== after > 0.5;
    fill.style.width = `${100 * after}%`;
    tick.style.left = `${100 * before}%`;
    text.textContent = `${before.toFixed(2)} → ${after.toFixed(2)}`;
    for (const node of [bar, text]) node.classList.toggle("flipped", flipped);
  };
  return { bar, text, show };
}

function render({ model, el }) {
  const setup = model.get("setup");
  const view = Math.random().toString(36).slice(2);
  const inside = new AbortController(); // ends all listeners outside of the page
  const queue = [];
  let asked = 0;
  let flight = null;
  let alive = true;

  // ------------------------------------------------------------------------------------------------------- requests

  function ask(what, content = {}, control = "") {
    const request = { id: `${view}-${++asked}`, do: what, control, ...content };
    const job = { request, began: performance.now() };
    const last = queue.at(-1);
    if (what === "change" && last?.request.do === what && last.request.control === control) {
      job.began = last.began;
      queue[queue.length - 1] = job;
    } else queue.push(job);
    pump();
    return request.id;
  }

  function pump() {
    if (flight || !queue.length || !alive) return;
    flight = queue.shift();
    root.setAttribute("aria-busy", true);
    const { buffers = [], ...content } = flight.request;
    model.send(content, undefined, buffers);
    const waiting = flight;
    setTimeout(() => waiting === flight && alive && silent(), SILENT);
  }

  const change = (control, changes) => ask("change", { changes }, control);

  // ---------------------------------------------------------------------------------------------------------- parts

  const edit = picture("edit", "edit");
  const veil = h("canvas", { className: "veil", hidden: true, "aria-hidden": "true" });
  edit.figure.append(veil);
  const source = picture("source", "source");
  const inversion = picture("inversion", "inversion");
  const compare = h("button", { type: "button", title: "Press and hold, or hold C" }, "Hold to compare");
  const said = h("div", { className: "said", role: "status" });
  const timing = h("div", { className: "timing", title: "of the last step" });
  const lost = h("div", { className: "lost", role: "alert", hidden: true });

  const sources = { test: "Test pictures", sample: "Samples", upload: "My picture" };
  const choices = Object.fromEntries(
    ["test", "sample", "upload"].filter((name) => setup.sources.includes(name)).map((name) => [
      name,
      h("input", { type: "radio", name: `source-${view}`, value: name, onchange: () => choose(name) }),
    ]),
  );
  const number = h("input", {
    type: "number", min: 0, step: 1, "aria-label": "Number of the picture, or seed of the sample",
    onchange: () => number.checkValidity() && change("number", { number: Number(number.value) }),
  });
  const file = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => take(file.files[0]) });
  const upload = button("Upload…", () => file.click(), "A picture of your own; or drop one on the page");
  const align = button("Align the face", () => ask("align"), "Cuts the face out, upright, as the domain's pictures are");
  const warning = h("div", { className: "warning", role: "alert", hidden: true }, h("span"), align);
  const steps = [
    button("‹ Previous", () => ask("step", { by: -1 })), number, button("Next ›", () => ask("step", { by: 1 })),
  ];
  const surprise = button("Surprise me", () => ask("surprise"), "Another picture, with an edit taken by chance");

  const undo = button("Undo", () => ask("undo"), "Ctrl+Z");
  const redo = button("Redo", () => ask("redo"), "Ctrl+Shift+Z");
  const reset = button("Reset", () => ask("reset"), "No edits, the same source");
  const example = h("select", {
    "aria-label": "Examples",
    onchange: () => {
      if (example.value) ask("example", { title: example.value });
      example.value = "";
    },
  }, h("option", { value: "" }, "Examples…"), ...setup.examples.map((name) => h("option", { value: name }, name)));
  const theme = button("Dark", () => paint(root.dataset.theme === "dark" ? "light" : "dark"));

  const method = h("select", { onchange: () => ask("method", { method: method.value }) });
  for (const [group, names] of Object.entries(setup.methods)) {
    if (names.length) {
      const options = names.map((name) => h("option", { value: name }, name));
      method.append(h("optgroup", { label: group }, ...options));
    }
  }
  const sliders = h("div", { className: "sliders" });
  const others = h("div", { className: "others" });
  const tokens = range("Edited tokens", (pair) => change("tokens", { tokens: pair }));

  let wanted = ""; // the attribute whose pictures were asked for last: those of earlier ones come too late
  const seek = () => {
    wanted = carried.value;
    thumbs.replaceChildren("Looking for pictures that show it…");
    ask("references", { carried: wanted });
  };
  const carried = h("select", { onchange: seek });
  carried.append(...setup.attributes.map((name) => h("option", { value: name }, title(name))));
  const thumbs = h("div", { className: "thumbs", role: "group", "aria-label": "References" });
  const none = button("No reference", () => change("reference", { reference: null, carried: "" }));

  const psi = plain("Truncation psi", 0, setup.psi, 0.05, () => change("psi", { psi: Number(psi.input.value) }));
  const mixed = h("input", { type: "checkbox", onchange: mix });
  const seed = h("input", { type: "number", min: 0, max: setup.seeds, value: 1, onchange: mix });
  const mixTokens = range("Its tokens", mix, [Math.floor(setup.tokens / 2), setup.tokens - 1]);

  const recipe = h("textarea", { rows: 9, spellcheck: false });
  const code = h("textarea", { rows: 9, spellcheck: false, readOnly: true });
  const progress = h("progress", { max: 1 });
  const working = h("span");
  const busy = h("div", { className: "busy", hidden: true }, working, progress, button("Cancel", () => {
    model.send({ do: "cancel" });
  }));

  function mix() {
    change("mix", { mix: mixed.checked ? Number(seed.value) : null, mix_tokens: mixTokens.pair() });
  }

  /** A slider with its name and number; double-click and the key 0 set it to its usual value. */
  function slide(name, usual, properties, moved) {
    const input = h("input", { type: "range", "aria-label": name, ...properties });
    const zero = () => {
      if (Number(input.value) !== usual) {
        input.value = usual;
        moved();
      }
    };
    input.addEventListener("input", moved);
    input.addEventListener("dblclick", zero);
    input.addEventListener("keydown", (event) => {
      if (["0", "Delete", "Backspace"].includes(event.key)) zero();
    });
    return input;
  }

  function fill(input) {
    const [low, high, value] = [input.min, input.max, input.value].map(Number);
    const at = (x) => `${(100 * (x - low)) / (high - low)}%`;
    const from = low < 0 ? 0 : low;
    input.style.setProperty("--from", at(Math.min(from, value)));
    input.style.setProperty("--to", at(Math.max(from, value)));
  }

  function plain(name, min, max, step, moved) {
    const input = slide(name, 1, { min, max, step, value: 1 }, () => (put(Number(input.value)), moved()));
    const value = h("output");
    const put = (x) => {
      input.value = x;
      value.textContent = x.toFixed(2);
      fill(input);
    };
    put(1);
    return { input, put, row: h("div", { className: "row plain" }, h("span", { className: "name" }, name), input, value) };
  }

  /** Two sliders for the first and last token. */
  function range(name, moved, start = [0, setup.tokens - 1]) {
    const make = (what, i) => slide(`${name}, ${what}`, start[i], { min: 0, max: setup.tokens - 1, step: 1 }, () => {
      const other = [last, first][i];
      if (Number(first.value) > Number(last.value)) other.value = [first, last][i].value;
      put(pair());
      moved(pair());
    });
    const first = make("first", 0);
    const last = make("last", 1);
    const value = h("output");
    const pair = () => [Number(first.value), Number(last.value)];
    const put = ([a, b]) => {
      [first.value, last.value] = [a, b];
      value.textContent = `${a} to ${b}`;
      [first, last].forEach(fill);
    };
    put(start);
    const label = h("span", { className: "name" }, name);
    return { pair, put, row: h("div", { className: "row pair" }, label, first, last, value) };
  }

  // ------------------------------------------------------------------------------------------------------ arrangement

  const labelled = (text, control) => h("label", { className: "field" }, h("span", {}, text), control);
  const copy = (area) => button("Copy", async () => {
    await navigator.clipboard?.writeText(area.value);
    said.textContent = "Copied.";
  });
  const keys = "Arrow keys move a slider, 0 or a double-click sets it to zero. Ctrl+Z undoes, Ctrl+Shift+Z does again; "
    + "hold C to compare.";
  const panels = {
    Edit: [labelled("Method", method), sliders, tokens.row, others, h("p", { className: "keys" }, keys)],
    Reference: [labelled("Carry over", carried), thumbs, none],
    Mix: [psi.row, labelled("Mix in another code", mixed), labelled("Its seed", seed), mixTokens.row],
    Recipe: [
      h("div", { className: "buttons" },
        button("Download picture", () => ask("download")),
        button("Save picture and recipe", () => ask("save"), "Writes both into the run folder")),
      labelled("Recipe", recipe),
      h("div", { className: "buttons" },
        button("Use recipe", () => ask("recipe", { text: recipe.value }), "Takes the recipe in the text box"),
        copy(recipe)),
      labelled("The same in Python", code), copy(code),
    ],
  };
  if (!setup.carries) delete panels.Reference;
  const tabs = Object.keys(panels).map((name) => h("button", {
    type: "button", role: "tab", id: `${view}-${name}`, "aria-controls": `${view}-${name}-panel`,
    onclick: () => select(name),
  }, name));
  const bodies = Object.entries(panels).map(([name, parts]) => h("div", {
    role: "tabpanel", id: `${view}-${name}-panel`, "aria-labelledby": `${view}-${name}`,
  }, ...parts));
  const strip = h("div", { role: "tablist", "aria-label": "Controls" }, ...tabs);
  strip.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) select(tabs.at((tabs.indexOf(document.activeElement) + by) % tabs.length).textContent).focus();
  });

  function select(name) {
    tabs.forEach((tab, i) => {
      const chosen = tab.textContent === name;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      bodies[i].hidden = !chosen;
    });
    if (name === "Reference" && !thumbs.childNodes.length) seek();
    scroller.scrollTop = 0;
    return tabs.find((tab) => tab.textContent === name);
  }

  const kinds = h("fieldset", { className: "kinds" }, h("legend", {}, "Source"),
    ...Object.entries(choices).map(([name, input]) => h("label", {}, input, sources[name])));
  const left = h("section", { className: "pictures", "aria-label": "Pictures" },
    edit.figure,
    h("div", { className: "small" }, source.figure, inversion.figure),
    h("div", { className: "choice" }, kinds, h("div", { className: "steps" }, ...steps),
      h("div", { className: "buttons" }, surprise, upload, compare)));
  const scroller = h("div", { className: "panels", tabIndex: -1 }, ...bodies);
  const tools = h("div", { className: "tools" }, undo, redo, reset, example, ...(setup.page ? [theme] : []));
  const right = h("section", { className: "controls", "aria-label": "Controls" }, tools, strip, warning, scroller);
  const foot = h("div", { className: "foot" }, said, busy, timing);
  const root = h("div", { className: "stx-explorer", role: "region", "aria-label": "Latent explorer" },
    lost, left, right, foot, file);
  // JupyterLab has keys of its own for whatever has the focus, arrows among them, unless that very element says no
  root.addEventListener("focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
  root.classList.toggle("page", setup.page);
  el.append(root);
  if (setup.page) document.documentElement.classList.add("stx-page");
  select("Edit");

  // ------------------------------------------------------------------------------------------------- pictures, theme

  /** While held, a picture is shown in the place of the edit. */
  function hold(node, shown, name) {
    const begin = () => {
      [veil.width, veil.height] = [shown.image.naturalWidth, shown.image.naturalHeight];
      veil.getContext("2d").drawImage(shown.image, 0, 0);
      veil.classList.toggle("coarse", veil.width < 256);
      veil.hidden = false;
      edit.figure.dataset.held = name;
    };
    const end = () => {
      veil.hidden = true;
      delete edit.figure.dataset.held;
    };
    node.addEventListener("pointerdown", begin);
    for (const kind of ["pointerup", "pointercancel", "pointerleave", "blur"]) node.addEventListener(kind, end);
    node.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press is none
    return [begin, end];
  }
  const [before, after] = hold(edit.figure, inversion, "before the edit");
  hold(compare, inversion, "before the edit");
  hold(source.image, source, "source");
  hold(inversion.image, inversion, "inversion");
  compare.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && before());
  compare.addEventListener("keyup", after);

  function paint(kind) {
    root.dataset.theme = kind;
    theme.textContent = kind === "dark" ? "Light" : "Dark";
    if (setup.page) document.documentElement.dataset.stxTheme = kind;
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => {
    const lab = document.body.dataset.jpThemeLight;
    paint(lab === "false" || ((setup.page || lab === undefined) && dark.matches) ? "dark" : "light");
  };
  follow();
  dark.addEventListener("change", follow, { signal: inside.signal });
  const watcher = new MutationObserver(follow);
  if (!setup.page) watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });

  // --------------------------------------------------------------------------------------------------------- keyboard

  const pressed = (event) => {
    const typing = event.target.matches?.(TYPED);
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && !typing && (key === "z" || key === "y")) {
      ask(key === "y" || event.shiftKey ? "redo" : "undo");
      event.preventDefault();
      event.stopPropagation();
    } else if (key === "c" && !event.ctrlKey && !event.metaKey && !event.altKey && !typing && !event.repeat) before();
  };
  const keyboard = setup.page ? document : root;
  keyboard.addEventListener("keydown", pressed, { signal: inside.signal });
  keyboard.addEventListener("keyup", (event) => event.key.toLowerCase() === "c" && after(), { signal: inside.signal });

  // ---------------------------------------------------------------------------------------------------------- uploads

  function choose(name) {
    if (name !== "upload" || model.get("shown").uploads.length) return ask("source", { source: name });
    file.click();
    follows(model.get("shown")); // until there is one
  }

  async function take(chosen, name = chosen?.name, aligned = false) {
    file.value = "";
    if (!chosen) return;
    if (chosen.size > setup.upload) return ask("too_large", { name, size: chosen.size });
    const content = await chosen.arrayBuffer();
    let from = 0;
    for (; content.byteLength - from > PART; from += PART) {
      model.send({ do: "part", name, from }, undefined, [content.slice(from, from + PART)]);
    }
    ask("upload", { name, from, aligned, buffers: [content.slice(from)] });
  }
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });

  /** The browser keeps what the kernel made of an upload, so that a reload has it. */
  function keep(state) {
    if (state.source !== "upload") return;
    const bytes = new Uint8Array(model.get("source").buffer);
    const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    try {
      sessionStorage.setItem(kept(state.name, state.aligned), text);
    } catch { /* full: a reload then says that the picture is not here */ }
  }

  async function restore(text) {
    const { source: from, name, aligned = false } = JSON.parse(text);
    const picture = from === "upload" && sessionStorage.getItem(kept(name, aligned));
    if (picture) {
      const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
      await take(new File([bytes], name), name, aligned);
    }
    ask("recipe", { text, restored: true });
  }

  // ---------------------------------------------------------------------------------------------------------- address

  let written = null;
  function write() {
    clearTimeout(written);
    written = null;
    const { short, start } = model.get("shown");
    sessionStorage.setItem("stx-start", start);
    history.replaceState(history.state, "", short === start ? location.pathname + location.search : `#edit=${encodeURIComponent(short)}`);
  }
  addEventListener("pagehide", () => written && write(), { signal: inside.signal });

  function begin() {
    const { fresh, start } = model.get("shown");
    const [, text] = location.hash.match(/^#edit=(.*)$/) ?? [];
    if (!fresh || !text || !(setup.page || sessionStorage.getItem("stx-start") === start)) return;
    try {
      restore(decodeURIComponent(text));
    } catch {
      ask("recipe", { text: decodeURIComponent(text), restored: true }); // the kernel says what is wrong with it
    }
  }

  // ---------------------------------------------------------------------------------------------------- lost kernels

  function gone(text) {
    alive = false;
    lost.replaceChildren(h("span", {}, text));
    const again = setup.page ? "Your edit is kept in this page's address." : "Run the notebook again: your edit comes back.";
    lost.append(h("span", {}, again));
    if (setup.page) lost.append(button("Load again", () => location.reload()));
    lost.hidden = false;
    root.classList.add("dead");
  }

  const kernel = model.widget_manager?.kernel;
  function silent() {
    if (!kernel || kernel.status === "busy" || kernel.connectionStatus === "connecting") {
      said.textContent = "Still waiting for the kernel…";
      const waiting = flight;
      if (kernel) setTimeout(() => waiting && waiting === flight && alive && silent(), SILENT);
    } else gone("The kernel does not answer any more.");
  }
  function watch() {
    if (!alive) return;
    const dead = ["dead", "restarting", "autorestarting", "terminating"].includes(kernel.status);
    if (dead) gone("The kernel has died.");
    else if (kernel.connectionStatus === "disconnected") gone("The connection to the kernel is lost.");
    else root.classList.toggle("waiting", kernel.connectionStatus === "connecting");
    if (kernel.connectionStatus === "connecting") said.textContent = "The connection is lost; trying again…";
  }
  kernel?.statusChanged?.connect(watch);
  kernel?.connectionStatusChanged?.connect(watch);

  // ---------------------------------------------------------------------------------------------------------- showing

  let rows = {};
  let built = "";
  function build({ sliders: names, reach, after: chances }) {
    const key = JSON.stringify([names, reach, Object.keys(chances)]);
    if (key === built) return;
    built = key;
    rows = {};
    const strengths = () => Object.fromEntries(
      Object.entries(rows).filter(([, row]) => row.strength?.()).map(([name, row]) => [name, row.strength()]),
    );
    sliders.replaceChildren(...names.map((name) => {
      const chance = name in chances ? probability() : null;
      const value = h("output");
      let exact = 0;
      const put = (x) => {
        exact = x;
        if (Math.round((x / reach) * STEPS) !== Number(input.value)) input.value = (x / reach) * STEPS;
        value.textContent = signed(x);
        fill(input);
      };
      const input = slide(title(name), 0, { min: -STEPS, max: STEPS, step: 1, value: 0 }, () => {
        put(Number(((Number(input.value) * reach) / STEPS).toFixed(6)));
        change(name, { strengths: strengths() });
      });
      input.dataset.name = name;
      const show = (before, now) => {
        chance?.show(before, now);
        const told = chance ? `, probability ${before.toFixed(2)} to ${now.toFixed(2)}` : "";
        input.setAttribute("aria-valuetext", signed(exact) + told);
      };
      put(0);
      rows[name] = { put, show, strength: () => exact };
      const parts = chance ? [chance.bar, chance.text] : [];
      return h("div", { className: "row" }, h("span", { className: "name" }, title(name)), input, value, ...parts);
    }));
    const left = Object.keys(chances).filter((name) => !names.includes(name));
    others.replaceChildren(...left.map((name) => {
      const chance = probability();
      rows[name] = { show: chance.show };
      return h("div", { className: "row other" }, h("span", { className: "name" }, title(name)), chance.bar, chance.text);
    }));
  }

  /** Gives a box of text its value, but what is being typed stays while answers to earlier requests come in. */
  const given = new Map();
  function give(box, value) {
    const typing = box.matches(":focus") && box.value !== given.get(box);
    given.set(box, String(value));
    if (!typing) box.value = value;
  }

  function follows({ state, sliders: names, uploads }) {
    choices[state.source].checked = true;
    number.disabled = state.source === "upload";
    number.max = state.source === "test" ? setup.pictures - 1 : setup.seeds;
    give(number, state.number);
    steps.forEach((step) => { if (step !== number) step.disabled = state.source === "upload" && uploads.length < 2; });
    method.value = state.method;
    for (const name of names) rows[name].put(state.strengths[name] ?? 0);
    tokens.put(state.tokens ?? [0, setup.tokens - 1]);
    psi.put(state.psi);
    mixed.checked = state.mix !== null;
    if (state.mix !== null) {
      give(seed, state.mix);
      mixTokens.put(state.mix_tokens);
    }
    for (const thumb of thumbs.querySelectorAll("button")) {
      const chosen = state.carried === carried.value && Number(thumb.dataset.number) === state.reference;
      thumb.setAttribute("aria-pressed", chosen);
    }
  }

  let painted = null;
  async function show() {
    const shown = model.get("shown");
    const job = flight?.request.id === shown.done ? flight : null;
    if (job) flight = null;
    build(shown);
    undo.disabled = !shown.undo;
    redo.disabled = !shown.redo;
    said.textContent = shown.said;
    warning.hidden = !shown.warning;
    warning.firstChild.textContent = shown.warning;
    align.hidden = !shown.can_align;
    for (const [name, chance] of Object.entries(shown.after)) rows[name].show(shown.before[name], chance);
    if (!flight && !queue.length) {
      follows(shown);
      for (const [name, chance] of Object.entries(shown.after)) rows[name].show(shown.before[name], chance);
      if (shown.recipe !== given.get(recipe)) give(recipe, shown.recipe); // one that was refused stays, to be mended
      code.value = shown.code;
      if (!shown.fresh) written = setTimeout(write, STILL, clearTimeout(written));
      keep(shown.state);
    }
    pump();
    source.show(model.get("source"), shown.alt.source);
    inversion.show(model.get("inversion"), shown.alt.inversion);
    await edit.show(model.get("edit"), shown.alt.edit);
    root.setAttribute("aria-busy", Boolean(flight || queue.length));
    if (!job) return;
    painted = job.began;
    requestAnimationFrame(() => setTimeout(() => {
      if (painted !== job.began) return;
      const took = performance.now() - job.began;
      root.dataset.painted = took.toFixed(1);
      root.dataset.kernel = shown.ms.toFixed(1);
      timing.textContent = `${took.toFixed(0)} ms to the picture, ${shown.ms.toFixed(0)} of them in the kernel`;
    }));
  }

  function offer() {
    const { carried: name, pictures } = model.get("references");
    if (!name || (wanted && name !== wanted)) return;
    carried.value = name;
    thumbs.replaceChildren(...pictures.map(([position, content]) => {
      const image = h("img", { alt: `test picture ${position}`, src: `data:image/png;base64,${content}` });
      const thumb = h("button", { type: "button", "aria-pressed": "false", "data-number": position,
        onclick: () => ask("refer", { reference: position, carried: name }) }, image);
      return thumb;
    }));
    if (!pictures.length) thumbs.textContent = "No picture here shows it.";
    follows(model.get("shown"));
  }

  function work() {
    const { label, share } = model.get("busy");
    busy.hidden = !label;
    working.textContent = label ?? "";
    progress.value = share ?? 0;
  }

  function download(message, buffers) {
    if (!message.download) return;
    const url = URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" }));
    h("a", { href: url, download: message.download }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  const listeners = { "change:shown": show, "change:references": offer, "change:busy": work, "msg:custom": download };
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  show();
  offer();
  work();
  begin();
  return () => {
    inside.abort();
    watcher.disconnect();
    kernel?.statusChanged?.disconnect(watch);
    kernel?.connectionStatusChanged?.disconnect(watch);
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
