"use strict";
// The live sampler: a release's ONNX file in the browser. Its runtime is fetched, from this origin, on the first press.
(() => {
  const one = (id) => document.getElementById(id);
  const { runtime, model, latentSize, directions, classes } = JSON.parse(one("live-data").textContent);
  const MAX_SEED = 2n ** 63n - 1n;

  // --- the latent of a seed: the same as pipeline.latents (Philox 4x32-10, then Box and Muller) ---
  const WORD = 0xffffffffn;
  const philox = (block, seed) => {
    let [c0, c1, c2, c3] = [BigInt(block), 0n, 0n, 0n];
    let [k0, k1] = [seed & WORD, seed >> 32n];
    for (let round = 0; round < 10; round += 1) {
      const [p0, p1] = [0xd2511f53n * c0, 0xcd9e8d57n * c2];
      [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & WORD, (p0 >> 32n) ^ c3 ^ k1, p0 & WORD];
      [k0, k1] = [(k0 + 0x9e3779b9n) & WORD, (k1 + 0xbb67ae85n) & WORD];
    }
    return [c0, c1, c2, c3].map(Number);
  };
  const latent = (seed) => {
    const values = new Float32Array(Math.ceil(latentSize / 4) * 4);
    for (let block = 0; block * 4 < latentSize; block += 1) {
      const uniform = philox(block, seed).map((word) => (word + 0.5) / 2 ** 32);
      for (const pair of [0, 2]) {
        const radius = Math.sqrt(-2 * Math.log(uniform[pair]));
        const angle = 2 * Math.PI * uniform[pair + 1];
        values[block * 4 + pair] = radius * Math.cos(angle);
        values[block * 4 + pair + 1] = radius * Math.sin(angle);
      }
    }
    return values.subarray(0, latentSize);
  };

  // --- images ---
  let ort = null;
  let session = null;
  const load = async () => {
    ort = await import(new URL(runtime, location.href).href);
    ort.env.wasm.numThreads = 1; // more would need a page that is isolated from others by its headers
    ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", new URL(runtime, location.href)).href };
    session = await ort.InferenceSession.create(new URL(model, location.href).href, { executionProviders: ["wasm"] });
    await images(new Float32Array(latentSize), everyClass.length ? everyClass : [0]); // the first one is slow
  };
  const images = async (z, labels) => {
    const feed = new Float32Array(z.length * labels.length);
    labels.forEach((_, index) => feed.set(z, index * z.length));
    const { image } = await session.run({
      latent: new ort.Tensor("float32", feed, [labels.length, z.length]),
      label: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]),
    });
    return image;
  };
  const paint = (canvas, image, index) => {
    const [, channels, height, width] = image.dims;
    const size = height * width;
    const pixels = new ImageData(width, height);
    for (let at = 0; at < size; at += 1) {
      for (let colour = 0; colour < 3; colour += 1) {
        const channel = channels === 1 ? 0 : colour;
        pixels.data[at * 4 + colour] = 255 * image.data[(index * channels + channel) * size + at]; // clamps, rounds
      }
      pixels.data[at * 4 + 3] = 255;
    }
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  };

  const enlarge = (canvas) => { // the canvas keeps the model's own pixels, what is seen lies over it
    const view = one("live-view");
    view.hidden = Math.max(canvas.width, canvas.height) > 64 || document.body.classList.contains("crisp");
    if (view.hidden) return;
    window.atelierEnlarge(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), view, 256);
  };

  // --- the controls ---
  const sliders = [...document.querySelectorAll("[data-direction]")];
  const chosen = () => Number(one("live-class")?.value ?? 0);
  const say = (text) => { one("live-message").textContent = text; };
  const everyClass = one("live-classes") ? classes.map((_, label) => label) : [];
  const buttons = everyClass.map((label) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"), classes[label]);
    button.addEventListener("click", () => { one("live-class").value = String(label); draw(); });
    return button;
  });
  const seedOf = (text) => (/^[0-9]{1,19}$/.test(text.trim()) && BigInt(text) <= MAX_SEED ? BigInt(text) : null);

  let asked = false;
  let busy = false;
  const draw = async () => { // one at a time; what is asked for meanwhile is drawn next, the newest alone
    asked = true;
    if (busy || !session) return;
    busy = true;
    try {
      while (asked) {
        asked = false;
        await drawOnce();
      }
    } catch (error) {
      say(`The model failed: ${error.message}`);
    } finally {
      busy = false;
    }
  };
  const drawOnce = async () => {
    const seed = seedOf(one("live-seed").value);
    one("live-seed").setAttribute("aria-invalid", String(seed === null));
    if (seed === null) { say("A seed is a whole number from 0 to 2⁶³ − 1."); return; }
    const started = performance.now();
    const z = Float32Array.from(latent(seed));
    for (const slider of sliders) {
      directions[slider.dataset.direction].forEach((part, at) => { z[at] += Number(slider.value) * part; });
    }
    const label = chosen();
    const image = await images(z, everyClass.length ? everyClass : [label]);
    const canvas = one("live-image");
    paint(canvas, image, everyClass.length ? label : 0);
    enlarge(canvas);
    buttons.forEach((button, index) => {
      paint(button.firstChild, image, index);
      button.setAttribute("aria-pressed", String(index === label));
    });
    const milliseconds = performance.now() - started;
    canvas.setAttribute("aria-label", `${classes[label] ?? "image"} made from seed ${seed}`);
    canvas.dataset.milliseconds = milliseconds.toFixed(1);
    canvas.dataset.drawn = `${seed}/${label}/${sliders.map((slider) => slider.value).join(",")}`;
    say(`made in ${milliseconds < 1 ? "under 1" : milliseconds.toFixed(0)} ms`);
  };
  const centre = () => sliders.forEach((slider) => { slider.value = "0"; });
  const start = async () => {
    const button = one("live-start");
    if (session) { await draw(); return; }
    if (button.disabled) return;
    button.disabled = true;
    button.textContent = "Loading …";
    try {
      await load();
    } catch (error) {
      button.disabled = false;
      button.textContent = "Try again";
      one("live-controls").removeAttribute("inert");
      say(`The model could not be loaded: ${error.message}`);
      return;
    }
    button.hidden = true;
    one("live-controls").removeAttribute("inert");
    one("live-classes")?.append(...buttons);
    await draw();
  };

  one("live-start").addEventListener("click", start);
  one("pixels")?.addEventListener("change", draw);
  one("live-controls").addEventListener("submit", (event) => event.preventDefault());
  one("live-controls").addEventListener("input", draw);
  one("live-new").addEventListener("click", () => {
    one("live-seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    draw();
  });
  one("live-reset").addEventListener("click", () => { centre(); draw(); });
  document.addEventListener("atelier:live", ({ detail }) => {
    one("live-seed").value = detail.seed;
    if (detail.label !== undefined) one("live-class").value = detail.label;
    centre();
    start();
  });
})();
