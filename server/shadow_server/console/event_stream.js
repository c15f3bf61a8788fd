// Server-sent events out of text that comes in pieces.

/** Takes pieces in any cut, gives whole events. */
export class EventParser {
  #rest = "";

  /** @returns {{event: string, data: string}[]} the events that this piece completes */
  take(piece) {
    const blocks = (this.#rest + piece).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop();
    return blocks.map(read).filter((found) => found.data !== "");
  }
}

function read(block) {
  const found = { event: "message", data: [] };
  for (const line of block.split("\n")) {
    // With s: a dot stops at U+2028 otherwise, which a model may write.
    const [, field, value] = /^(\w*): ?(.*)$/s.exec(line) ?? [];
    if (field === "event") found.event = value;
    else if (field === "data") found.data.push(value);
  }
  return { event: found.event, data: found.data.join("\n") };
}

/** Yield the events of an answer as they come. */
export async function* eventsOf(answer) {
  const parser = new EventParser();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.take(value);
    }
  } finally {
    // Also when nobody wants the rest: the server then stops generating it.
    await reader.cancel().catch(() => {});
  }
}
