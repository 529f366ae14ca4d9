// Reads files of an artifact over HTTP or, in Node, from disk; says what went wrong.

/** A file could not be read, or is not what it should be. */
export class FileError extends Error {
  /**
   * @param {string} message What was found and what was expected.
   * @param {string} advice What to do about it.
   */
  constructor(message, advice) {
    super(message);
    this.name = "FileError";
    this.advice = advice;
  }
}

/**
 * Reads a file.
 * @param {URL} url http:, https: or file:.
 * @param {Object} [options]
 * @param {number} [options.bytes] Its expected size; checked where it is given.
 * @param {string} [options.sha256] Its expected sum in hex; checked where it is given
 *   and the page came by HTTPS or from this computer (others have no crypto.subtle).
 * @param {Cache} [options.cache] Asked first. Nothing is stored in it.
 * @param {function(number): void} [options.onBytes] Called with the bytes of each
 *   part that arrives.
 * @return {Promise<Uint8Array>}
 * @throws {FileError}
 */
export async function readFile(url, options = {}) {
  const kept = await options.cache?.match(url);
  const bytes = kept
    ? await readBody(kept, url, options.onBytes)
    : url.protocol === "file:"
      ? await readDisk(url, options.onBytes)
      : await readHttp(url, options.onBytes);
  if (options.bytes !== undefined && bytes.length !== options.bytes) {
    throw new FileError(
      `${nameOf(url)} has ${bytes.length.toLocaleString("en")} bytes; expected ` +
        `${options.bytes.toLocaleString("en")}.`,
      "The file is truncated or of another version. Copy the whole artifact to the " +
        "server again, then retry.",
    );
  }
  if (options.sha256 && globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0"));
    if (hex.join("") !== options.sha256) {
      throw new FileError(
        `${nameOf(url)} is not the file this page was made with.`,
        "The server may have another version by now, or a damaged copy. Reload the " +
          "page; if that does not help, copy the whole artifact to the server again.",
      );
    }
  }
  return bytes;
}

function nameOf(url) {
  return decodeURIComponent(url.pathname.split("/").at(-1));
}

async function readHttp(url, onBytes) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    const offline = globalThis.navigator?.onLine === false;
    throw new FileError(
      `${nameOf(url)} could not be fetched: ` +
        (offline ? "this device is offline." : "the server does not answer."),
      offline
        ? "Connect to the network, then retry."
        : "Check that the server runs and that you are online, then retry.",
    );
  }
  if (!response.ok) {
    const missing = response.status === 404;
    throw new FileError(
      `${nameOf(url)} could not be fetched: the server answered ${response.status}` +
        (missing ? ", there is no such file." : "."),
      missing
        ? "Copy the whole artifact to the server, all files of its directory, and " +
          "retry. If the server has a new version by now, reload the page."
        : "See the server's log, then retry.",
    );
  }
  return readBody(response, url, onBytes);
}

async function readBody(response, url, onBytes) {
  const parts = [];
  let length = 0;
  try {
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      length += part.value.length;
      onBytes?.(part.value.length);
    }
  } catch {
    throw new FileError(
      `The connection broke while ${nameOf(url)} was being read.`,
      "Check the connection, then retry.",
    );
  }
  const bytes = new Uint8Array(length);
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}

async function readDisk(url, onBytes) {
  const { readFile: read } = await import("node:fs/promises");
  try {
    const bytes = new Uint8Array(await read(url));
    onBytes?.(bytes.length);
    return bytes;
  } catch (error) {
    throw new FileError(
      `${url.pathname}: ${error.code}`,
      "Name the directory of a whole tfjs artifact.",
    );
  }
}
