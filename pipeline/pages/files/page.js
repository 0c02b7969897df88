"use strict";
// What every page does: enlarge, walk by arrow keys, show one class, copy code. Without it the page still shows all.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // --- groups of images: one stop for the Tab key each, arrows within ---
  const groups = new Map();
  for (const tile of all(".tile")) {
    const group = groups.get(tile.dataset.group) ?? [];
    group.push(tile);
    groups.set(tile.dataset.group, group);
  }
  const shown = (group) => (groups.get(group) ?? []).filter((tile) => !tile.hidden);
  const reachable = (group) => {
    shown(group).forEach((tile, index) => { tile.tabIndex = index ? -1 : 0; });
  };
  const below = (tiles, at, way) => {
    const { left, top } = tiles[at].getBoundingClientRect();
    for (let to = at + way; tiles[to]; to += way) {
      const place = tiles[to].getBoundingClientRect();
      if (Math.abs(place.left - left) < 4 && Math.abs(place.top - top) > 4) return to;
    }
    return at;
  };
  const step = (tiles, at, key) => ({
    ArrowLeft: () => Math.max(0, at - 1),
    ArrowRight: () => Math.min(tiles.length - 1, at + 1),
    ArrowUp: () => below(tiles, at, -1),
    ArrowDown: () => below(tiles, at, 1),
    Home: () => 0,
    End: () => tiles.length - 1,
  })[key]?.();
  document.addEventListener("keydown", (event) => {
    const tile = event.target.closest?.(".tile");
    if (!tile || event.altKey || event.ctrlKey || event.metaKey) return;
    const tiles = shown(tile.dataset.group);
    const to = step(tiles, tiles.indexOf(tile), event.key);
    if (to === undefined) return;
    event.preventDefault();
    tile.tabIndex = -1;
    tiles[to].tabIndex = 0;
    tiles[to].focus();
  });
  groups.forEach((_, group) => reachable(group));

  // --- small images, enlarged: Catmull and Rom's cubic shows the stroke where a browser's own way shows a lattice ---
  const SMALL = 64;
  const cubic = (x) => {
    const d = Math.abs(x);
    if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
    return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
  };
  const taps = (from, to) => Array.from({ length: to }, (_, at) => {
    const centre = ((at + 0.5) * from) / to - 0.5;
    return [-1, 0, 1, 2].map((offset) => {
      const source = Math.floor(centre) + offset;
      return [Math.min(from - 1, Math.max(0, source)), cubic(centre - source)];
    });
  });
  window.atelierEnlarge = (pixels, canvas, side) => {
    const { width, height, data } = pixels;
    const scale = Math.max(1, Math.floor(side / Math.max(width, height)));
    const [wide, high] = [width * scale, height * scale];
    const [columns, rows] = [taps(width, wide), taps(height, high)];
    const middle = new Float32Array(height * wide * 3);
    for (let y = 0; y < height; y += 1) for (let x = 0; x < wide; x += 1) for (let c = 0; c < 3; c += 1) {
      let sum = 0;
      for (const [source, weight] of columns[x]) sum += weight * data[(y * width + source) * 4 + c];
      middle[(y * wide + x) * 3 + c] = sum;
    }
    const large = new ImageData(wide, high);
    for (let y = 0; y < high; y += 1) for (let x = 0; x < wide; x += 1) {
      for (let c = 0; c < 3; c += 1) {
        let sum = 0;
        for (const [source, weight] of rows[y]) sum += weight * middle[(source * wide + x) * 3 + c];
        large.data[(y * wide + x) * 4 + c] = sum;
      }
      large.data[(y * wide + x) * 4 + 3] = 255;
    }
    [canvas.width, canvas.height] = [wide, high];
    canvas.getContext("2d").putImageData(large, 0, 0);
  };
  const enlarged = (image) => {
    const canvas = document.createElement("canvas");
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    if (Math.max(width, height) > SMALL || document.body.classList.contains("crisp")) return image.src;
    [canvas.width, canvas.height] = [width, height];
    const paper = canvas.getContext("2d");
    paper.drawImage(image, 0, 0);
    window.atelierEnlarge(paper.getImageData(0, 0, width, height), canvas, 512);
    return canvas.toDataURL();
  };

  // --- the viewer ---
  const viewer = one("viewer");
  let current = null;
  let opener = null;
  const present = (tile) => {
    const image = tile.querySelector("img");
    const tiles = shown(tile.dataset.group);
    const live = one("viewer-live");
    current = tile;
    one("viewer-image").src = enlarged(image);
    one("viewer-image").alt = image.alt;
    one("viewer-image").width = image.naturalWidth;
    one("viewer-image").height = image.naturalHeight;
    one("viewer-caption").textContent = `${image.alt} (${tiles.indexOf(tile) + 1} of ${tiles.length})`;
    live.hidden = !(tile.dataset.group === "samples" && tile.dataset.seed && one("sampler"));
  };
  const move = (way) => {
    const tiles = shown(current.dataset.group);
    present(tiles[(tiles.indexOf(current) + way + tiles.length) % tiles.length]);
  };
  document.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    present(tile);
    opener = document.activeElement;
    viewer.showModal();
    one("viewer-close").focus();
  });
  viewer.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    move(way);
  });
  viewer.addEventListener("close", () => {
    const tiles = shown(current.dataset.group);
    tiles.forEach((tile) => { tile.tabIndex = tile === current ? 0 : -1; });
    // The event comes late: the browser has given the focus back to the opener, and the reader may have moved on.
    if ([opener, document.body].includes(document.activeElement)) current.focus();
  });
  one("viewer-before").addEventListener("click", () => move(-1));
  one("viewer-after").addEventListener("click", () => move(1));
  one("viewer-close").addEventListener("click", () => viewer.close());
  viewer.querySelector(".stage").addEventListener("click", () => viewer.close());
  one("viewer-live").addEventListener("click", () => {
    const { seed, label } = current.dataset;
    viewer.close();
    document.dispatchEvent(new CustomEvent("atelier:live", { detail: { seed, label } }));
  });

  // --- one class ---
  const count = one("wall-count");
  const everything = count?.textContent;
  const filter = (label, name) => {
    for (const tile of groups.get("samples") ?? []) tile.hidden = label !== "" && tile.dataset.label !== label;
    reachable("samples");
    count.textContent = label === "" ? everything : `${shown("samples").length} of class ${name}`;
  };
  for (const pill of all("[data-filter]")) {
    pill.addEventListener("click", () => {
      all("[data-filter]").forEach((other) => other.setAttribute("aria-pressed", String(other === pill)));
      filter(pill.dataset.filter, pill.textContent);
    });
  }
  one("class-filter")?.addEventListener("change", ({ target }) => {
    filter(target.value, target.selectedOptions[0].textContent);
  });
  one("pixels")?.addEventListener("change", ({ target }) => {
    document.body.classList.toggle("crisp", target.checked);
  });

  // --- copy ---
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(one(button.dataset.copy).textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
