// The explorer without Python: encoder, edit, generator and latent classifier of a domain, run by onnxruntime-web.
// explorer.json tells what there is (docs/web.py writes it); `stx export --to onnx` makes the graphs.
const at = (id) => document.getElementById(id);
const here = new URL(".", import.meta.url);
const page = { ready: false, steps: 0, backend: "", why: "", error: NaN, milliseconds: NaN, image: null, strengths: null };
window.explorer = page; // what a test looks at

let told, pictures, graphs, ort; // settings, test pictures, sessions, runtime
let source, start, before; // the picture, its code and probabilities
let busy = false, again = false;

const say = (text, warning = false) => {
  at("note").textContent = text;
  at("note").classList.toggle("warning", warning);
};
const title = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ").toLowerCase();
const tensor = (values, shape) => new ort.Tensor("float32", values, shape);
const run = async (name, feeds) => (await graphs[name].run(feeds))[told.graphs[name].output];

// A file, unpacked where it is packed; servers that unpack it themselves do no harm.
async function load(file, count) {
  const response = await fetch(new URL(file, here));
  if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
  const parts = [];
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    count(value.length);
  }
  const blob = new Blob(parts);
  const [a, b] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const packed = a === 0x1f && b === 0x8b;
  return packed ? new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer() : blob.arrayBuffer();
}

async function open(backend) {
  const { script, wasm } = told.runtimes[backend];
  const files = { wasm, check: "check.f32.gz" };
  for (const name in told.graphs) files[name] = told.graphs[name].file;
  const total = Object.values(files).reduce((sum, file) => sum + told.bytes[file], 0);
  let loaded = 0;
  at("size").textContent = `${(total / 1e6).toFixed(0)} MB are loaded once; then it needs no network.`;
  const count = (bytes) => {
    if (page.failed) return; // another file is missing, which stays said
    loaded += bytes;
    at("bar").value = Math.min(1, loaded / total);
    at("status").textContent = `Loading ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
  };
  const [module, ...contents] = await Promise.all([
    import(new URL(script, here)), ...Object.values(files).map((file) => load(file, count)),
  ]);
  const content = Object.fromEntries(Object.keys(files).map((name, i) => [name, contents[i]]));
  ort = module;
  ort.env.wasm.numThreads = 1; // more need headers that static servers do not send
  ort.env.wasm.wasmBinary = content.wasm;
  ort.env.logLevel = "error";
  at("status").textContent = "Starting the networks";
  const made = {};
  for (const name in told.graphs) {
    made[name] = await ort.InferenceSession.create(new Uint8Array(content[name]), { executionProviders: [backend] });
  }
  graphs = made;
  return new Float32Array(content.check);
}

// The largest difference from what Python drew of the first picture with the first edit.
// next: the picture to go on with.
async function check(expected, next) {
  await choose(await pixels(pictures[0]));
  const strengths = new Float32Array(told.edit.attributes.length);
  strengths[0] = 1;
  const edited = await run("edit", { ws: start, strengths: tensor(strengths, [1, strengths.length]) });
  const drawn = (await run("generator", { ws: edited })).data;
  if (next) await choose(next);
  return drawn.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i])), 0);
}

async function begin() {
  told = await (await fetch(new URL("explorer.json", here))).json();
  pictures = await Promise.all(told.pictures.map(async (file) => (await fetch(new URL(file, here))).blob()));
  const wanted = new URLSearchParams(location.search).get("backend");
  const gpu = wanted !== "wasm" && (await navigator.gpu?.requestAdapter().catch(() => null));
  if (!gpu && wanted !== "wasm") page.why = "no WebGPU in this browser";
  for (const backend of gpu ? ["webgpu", "wasm"] : ["wasm"]) {
    try {
      page.error = await check(await open(backend));
      page.backend = backend;
      if (page.error <= told.tolerance) break; // else WebGPU is left for WebAssembly
      page.why = `WebGPU's pixels are ${page.error.toExponential(0)} from Python's`;
    } catch (error) {
      if (backend === "wasm") throw error;
      page.why = `WebGPU failed: ${error.message || error}`;
    }
  }
  if (!(page.error <= told.tolerance)) throw new Error(`this browser's numbers are ${page.error} from Python's`);
  controls();
  at("bar").hidden = true;
  await sample(0);
  page.ready = true;
}

function controls() {
  pictures.forEach((picture, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `test picture ${i}`);
    button.innerHTML = `<img alt="" src="${URL.createObjectURL(picture)}">`;
    button.onclick = () => sample(i);
    at("samples").append(button);
  });
  told.edit.attributes.forEach((attribute, k) => {
    const row = document.createElement("div"), reach = told.edit.reach;
    row.className = "attribute";
    row.innerHTML = `<label for="a${k}"></label><input id="a${k}" type="range" step="${reach / 40}" value="0">` +
      `<output for="a${k}">0.00</output><div class="shown"><i></i><b></b></div>`;
    row.querySelector("label").textContent = title(attribute.name);
    const slider = row.querySelector("input");
    slider.min = attribute.remove ? -reach : 0;
    slider.max = attribute.add ? reach : 0;
    slider.value = 0;
    slider.oninput = step;
    slider.ondblclick = () => { slider.value = 0; step(); };
    at("attributes").append(row);
  });
  at("upload").onchange = () => at("upload").files[0] && upload(at("upload").files[0]);
  at("reset").onclick = () => { sliders().forEach((slider) => { slider.value = 0; }); step(); };
  const hold = (held) => () => draw("edit", held ? page.start : page.image);
  for (const name of ["pointerdown", "keydown"]) at("compare").addEventListener(name, hold(true));
  for (const name of ["pointerup", "pointerleave", "keyup", "blur"]) at("compare").addEventListener(name, hold(false));
  for (const id of ["upload", "reset", "compare"]) at(id).disabled = false;
}

const sliders = () => [...at("attributes").querySelectorAll("input")];

async function sample(i) {
  await choose(await pixels(pictures[i]));
  [...at("samples").children].forEach((button, j) => button.setAttribute("aria-pressed", i === j));
  say("");
  await step();
}

async function upload(file) {
  try {
    await choose(await pixels(file));
  } catch {
    return say(`${file.name}: not a picture that this browser reads; convert it to PNG or JPEG`, true);
  } finally {
    at("upload").value = "";
  }
  [...at("samples").children].forEach((button) => button.setAttribute("aria-pressed", false));
  const far = page.l2 > told.usual_l2;
  say(far ? `${file.name}: unlike the pictures these networks know, so its inversion is another face` : file.name, far);
  await step();
}

// Any picture that the browser reads, on white, as values in [-1, 1], channels first, resized as Python's package does.
async function pixels(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const [height, width] = told.input_size;
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const narrow = resample(data, canvas.height, canvas.width, width);
  const levels = transpose(resample(transpose(narrow, canvas.height, width), width, canvas.height, height), width, height);
  const values = new Float32Array(3 * height * width);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) values[c * height * width + i] = Math.fround(levels[4 * i + c] / 127.5) - 1;
  }
  return values;
}

// Rows of RGBA to another width: Pillow's bilinear filter, which averages where it shrinks, rounded to 8 bits.
function resample(data, rows, from, to) {
  if (from === to) return data;
  const out = new Uint8ClampedArray(4 * rows * to), scale = from / to, support = Math.max(1, scale);
  for (let x = 0; x < to; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), last = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => Math.max(0, 1 - Math.abs((first + i - centre + 0.5) / support)));
    const whole = weights.reduce((a, b) => a + b, 0);
    for (let y = 0; y < rows; y++) {
      for (let c = 0; c < 4; c++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * data[4 * (y * from + first + i) + c];
        out[4 * (y * to + x) + c] = Math.floor(sum / whole + 0.5);
      }
    }
  }
  return out;
}

function transpose(data, rows, columns) {
  const from = new Uint32Array(data.buffer), out = new Uint32Array(rows * columns);
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) out[x * rows + y] = from[y * columns + x];
  return new Uint8ClampedArray(out.buffer);
}

// A new source: its code, the code's picture, and what the classifier reads in it.
async function choose(values) {
  const [height, width] = told.input_size;
  while (busy) await new Promise((done) => setTimeout(done, 5));
  busy = true;
  try {
    start = await run("encoder", { image: tensor(values, [1, 3, height, width]) });
    page.start = (await run("generator", { ws: start })).data;
    before = await probabilities(start);
  } finally {
    busy = false;
  }
  source = values;
  if (page.start.length === values.length) {
    page.l2 = page.start.reduce((sum, value, i) => sum + (value - values[i]) ** 2, 0) / values.length;
  }
  draw("source", source, height, width);
  draw("inversion", page.start);
}

async function probabilities(ws) {
  if (!told.classifier) return {};
  const logits = (await run(told.classifier, { ws })).data;
  return Object.fromEntries(told.attributes[told.classifier].map((name, k) => [name, 1 / (1 + Math.exp(-logits[k]))]));
}

// The edit at the sliders' present place; what is dragged meanwhile is one more step, not a queue of them.
async function step() {
  again = true;
  if (busy) return;
  busy = true;
  try {
    while (again) {
      again = false;
      await edit(Float32Array.from(sliders(), (slider) => slider.value));
      await new Promise((done) => setTimeout(done)); // the page is drawn between two steps
    }
  } catch (error) {
    if (page.backend === "webgpu") return recover(error);
    say(`This step failed: ${error.message || error}`, true);
  } finally {
    busy = false;
  }
}

// A device can be lost while the page is open: then WebAssembly goes on with the same picture and sliders.
async function recover(error) {
  page.why = `WebGPU failed: ${error.message || error}`;
  page.backend = "wasm";
  try {
    page.error = await check(await open("wasm"), source);
    await step();
  } catch (failed) {
    say(`This step failed: ${failed.message || failed}`, true);
  }
}

async function edit(strengths) {
  const began = performance.now();
  const edited = await run("edit", { ws: start, strengths: tensor(strengths, [1, strengths.length]) });
  page.image = (await run("generator", { ws: edited })).data;
  show(strengths, await probabilities(edited));
  draw("edit", page.image);
  page.strengths = strengths;
  page.milliseconds = performance.now() - began;
  page.steps += 1;
  const name = page.backend === "webgpu" ? "WebGPU" : `WebAssembly${page.why && ` (${page.why})`}`;
  const near = page.error.toExponential(0);
  at("status").textContent = `${name}, ${page.milliseconds.toFixed(0)} ms a step, pixels within ${near} of Python's`;
}

function show(strengths, after) {
  [...at("attributes").children].forEach((row, k) => {
    const name = told.edit.attributes[k].name, p = after[name], flipped = p > 0.5 !== before[name] > 0.5;
    row.querySelector("output").textContent = (strengths[k] > 0 ? "+" : "") + strengths[k].toFixed(2);
    const bar = row.querySelector(".shown");
    bar.hidden = p === undefined;
    if (bar.hidden) return;
    bar.classList.toggle("flipped", flipped);
    row.querySelector("label").classList.toggle("flipped-name", flipped);
    bar.title = `probability ${before[name].toFixed(2)} before, ${p.toFixed(2)} now`;
    bar.querySelector("i").style.width = `${100 * p}%`;
    bar.querySelector("b").style.left = `calc(${100 * before[name]}% - 1px)`;
  });
  const edits = told.edit.attributes.flatMap(({ name }, k) => (strengths[k] ? `${title(name)} ${strengths[k].toFixed(2)}` : []));
  at("edit").setAttribute("aria-label", `edit: ${edits.join(", ") || "none"}`);
}

function draw(id, values, height = told.resolution, width = told.resolution) {
  const canvas = at(id), image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round((values[c * height * width + i] + 1) * 127.5);
    image.data[4 * i + 3] = 255;
  }
  [canvas.height, canvas.width] = [height, width];
  canvas.classList.toggle("small", width < 256);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

begin().catch((error) => {
  page.failed = String(error);
  at("status").textContent = `This page could not start: ${error.message || error}`;
});
