// A text field in which a mention is selected: with the mouse, by touch or with keys.

const WORD = /[\p{L}\p{M}\p{N}]/u;

/** Offsets here are JavaScript's, UTF-16 code units. */
export class MentionField {
  /**
   * @param {HTMLTextAreaElement} field
   * @param {HTMLElement} backdrop Lies behind the field, has the same text, and shows
   *   the mention.
   * @param {function(): void} onChange Called when text or mention are others.
   */
  constructor(field, backdrop, onChange) {
    this.field = field;
    this.backdrop = backdrop;
    this.onChange = onChange;
    this.text = field.value;
    this.start = 0;
    this.end = 0;
    field.addEventListener("input", () => this.#edited());
    field.addEventListener("scroll", () => this.#align());
    // Both: not every browser tells the document of a text field's selection.
    field.addEventListener("select", () => this.#selected());
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === field) this.#selected();
    });
    new ResizeObserver(() => this.#align()).observe(field);
  }

  /** Whether a mention is selected. */
  get hasMention() {
    return this.start < this.end;
  }

  /** The mention as it stands in the text. */
  get surface() {
    return this.text.slice(this.start, this.end);
  }

  /** Sets text and mention. */
  set(text, start, end) {
    this.field.value = text;
    // Browsers may change line ends.
    this.text = this.field.value;
    this.start = start;
    this.end = end;
    this.#show();
    this.onChange();
  }

  /** Selects the next word (1) or the one before (-1); the first if none is. */
  move(direction) {
    const words = this.#words();
    const at = this.hasMention
      ? direction > 0
        ? words.find(([start]) => start >= this.end)
        : words.findLast(([, end]) => end <= this.start)
      : words[0];
    if (at) this.set(this.text, ...at);
  }

  /** Adds the word behind the mention, or takes its last one away. */
  resize(direction) {
    if (!this.hasMention) return this.move(1);
    const words = this.#words();
    const end =
      direction > 0
        ? words.find(([, wordEnd]) => wordEnd > this.end)?.[1]
        : words.findLast(
            ([wordStart, wordEnd]) => wordStart >= this.start && wordEnd < this.end,
          )?.[1];
    if (end) this.set(this.text, this.start, end);
    return undefined;
  }

  #words() {
    if (!globalThis.Intl?.Segmenter) {
      const found = this.text.matchAll(/[\p{L}\p{M}\p{N}]+/gu);
      return Array.from(found, (match) => [match.index, match.index + match[0].length]);
    }
    const segments = new Intl.Segmenter(undefined, { granularity: "word" });
    return Array.from(segments.segment(this.text))
      .filter(({ segment }) => WORD.test(segment))
      .map(({ index, segment }) => [index, index + segment.length]);
  }

  #selected() {
    let { selectionStart: start, selectionEnd: end } = this.field;
    if (start === end) return;
    // Double clicks take the blank behind the word along on some systems.
    while (start < end && /\s/.test(this.text[end - 1])) end -= 1;
    while (start < end && /\s/.test(this.text[start])) start += 1;
    if (start === this.start && end === this.end) return;
    this.start = start;
    this.end = end;
    this.#show();
    this.onChange();
  }

  /** Keeps the mention where it was, unless it was changed itself. */
  #edited() {
    const { value } = this.field;
    const shorter = Math.min(value.length, this.text.length);
    let before = 0;
    while (before < shorter && value[before] === this.text[before]) before += 1;
    let behind = 0;
    while (
      behind < shorter - before &&
      value.at(-1 - behind) === this.text.at(-1 - behind)
    ) {
      behind += 1;
    }
    const moved = value.length - this.text.length;
    if (this.text.length - behind <= this.start) {
      this.start += moved;
      this.end += moved;
    } else if (before < this.end) {
      this.start = 0;
      this.end = 0;
    }
    this.text = value;
    this.#show();
    this.onChange();
  }

  #show() {
    const mark = document.createElement("mark");
    mark.textContent = this.surface;
    this.backdrop.replaceChildren(
      this.text.slice(0, this.start),
      ...(this.hasMention ? [mark] : []),
      // A last line that is empty would have no height.
      `${this.text.slice(this.end)}\n`,
    );
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
    this.#align();
  }

  #align() {
    // A scroll bar makes the lines shorter.
    this.backdrop.style.width = `${this.field.clientWidth}px`;
    this.backdrop.scrollTop = this.field.scrollTop;
  }
}
