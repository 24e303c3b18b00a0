// Files that the page writes: PNG and GIF with a comment that says how they were made.
"use strict";

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ value >>> 1 : value >>> 1;
  return value;
});

// Add a text to a PNG file, after its header. png: bytes; text: Latin letters.
function pngWithText(png, keyword, text) {
  const body = Uint8Array.from(`tEXt${keyword}\0${text}`, (letter) => letter.charCodeAt(0));
  const crc = body.reduce((crc, byte) => CRC[(crc ^ byte) & 255] ^ crc >>> 8, -1) ^ -1;
  const chunk = new Uint8Array(body.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setInt32(body.length + 4, crc);
  return new Blob([png.subarray(0, 33), chunk, png.subarray(33)], { type: "image/png" });
}

// An animated GIF that repeats for ever. frames: {rgb, width, height, delay}, all of one size, with
// width x height x 3 bytes and a delay in hundredths of a second; each is shown `scale` times as
// large.
function gif(frames, text, scale = 4) {
  const bytes = [], { width, height } = frames[0];
  const put = (...values) => bytes.push(...values);
  const short = (value) => put(value & 255, value >> 8);
  const blocks = (data) => { // of at most 255 bytes
    for (let i = 0; i < data.length; i += 255)
      put(Math.min(255, data.length - i), ...data.slice(i, i + 255));
    put(0);
  };
  const letters = (letter) => letter.charCodeAt(0);
  put(...Array.from("GIF89a", letters));
  short(width * scale);
  short(height * scale);
  put(0x70, 0, 0);
  put(0x21, 0xff, 11, ...Array.from("NETSCAPE2.0", letters), 3, 1, 0, 0, 0);
  put(0x21, 0xfe);
  blocks(Array.from(text, letters));
  for (const { rgb, delay } of frames) {
    const { colours, indices } = palette256(rgb);
    put(0x21, 0xf9, 4, 0);
    short(delay);
    put(0, 0, 0x2c, 0, 0, 0, 0);
    short(width * scale);
    short(height * scale);
    put(0x87, ...colours.flat(), ...Array(768 - 3 * colours.length).fill(0), 8);
    const large = new Uint8Array(width * height * scale * scale);
    for (let y = 0, i = 0; y < height * scale; y++)
      for (let x = 0; x < width * scale; x++, i++)
        large[i] = indices[Math.floor(y / scale) * width + Math.floor(x / scale)];
    blocks(lzw(large));
  }
  put(0x3b);
  return new Blob([Uint8Array.from(bytes)], { type: "image/gif" });
}

// At most 256 colours for an image, by median cut: split the box with the widest channel until
// there are enough boxes.
function palette256(rgb) {
  const counts = new Map();
  for (let i = 0; i < rgb.length; i += 3) {
    const key = rgb[i] << 16 | rgb[i + 1] << 8 | rgb[i + 2];
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const box = (keys) => {
    const widths = [16, 8, 0].map((shift) => {
      const values = keys.map((key) => key >> shift & 255);
      const most = values.reduce((a, b) => Math.max(a, b));
      return [most - values.reduce((a, b) => Math.min(a, b)), shift];
    });
    const [width, shift] = widths.reduce((a, b) => (b[0] > a[0] ? b : a));
    return { keys, width, shift };
  };
  const boxes = [box([...counts.keys()])];
  while (boxes.length < 256) {
    const widest = boxes.reduce((a, b) => (b.width > a.width ? b : a));
    if (!widest.width) break;
    const keys = widest.keys.sort((a, b) => (a >> widest.shift & 255) - (b >> widest.shift & 255));
    const half = keys.length >> 1;
    boxes.splice(boxes.indexOf(widest), 1, box(keys.slice(0, half)), box(keys.slice(half)));
  }
  const indexOf = new Map(), colours = boxes.map(({ keys }, index) => {
    const total = keys.reduce((sum, key) => sum + counts.get(key), 0);
    keys.forEach((key) => indexOf.set(key, index));
    return [16, 8, 0].map((shift) => Math.round(
      keys.reduce((sum, key) => sum + counts.get(key) * (key >> shift & 255), 0) / total));
  });
  const indices = Uint8Array.from({ length: rgb.length / 3 }, (_, i) => (
    indexOf.get(rgb[3 * i] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i + 2])));
  return { colours, indices };
}

// The compression of GIF: each code stands for a run of bytes that occurred before, and one byte
// more.
function lzw(data) {
  const out = [], CLEAR = 256, END = 257;
  let bits = 0, count = 0, width = 9, next = 258, table = new Map(), prefix = -1;
  const put = (code) => {
    bits |= code << count;
    for (count += width; count >= 8; count -= 8, bits >>>= 8) out.push(bits & 255);
  };
  put(CLEAR);
  for (const byte of data) {
    const run = prefix << 8 | byte, known = prefix < 0 ? byte : table.get(run);
    if (known !== undefined) { prefix = known; continue; }
    put(prefix);
    if (next === 4096) {
      put(CLEAR);
      [width, next, table] = [9, 258, new Map()];
    } else {
      if (next === 1 << width) width++;
      table.set(run, next++);
    }
    prefix = byte;
  }
  put(prefix);
  if (next === 1 << width && width < 12) width++;
  put(END);
  if (count) out.push(bits & 255);
  return out;
}
