// Counts how this process opens files off the event loop, as a look at a key file does, and makes some opens hang, as a
// mount that is gone does. Nothing is mocked: the runtime's own function opens the file, at once or when it is let go.
import files, { open as seen } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import type { Scope } from './support.js';

/** On Node the module is changed and its importers see it; what other runtimes have instead calls `inner`. */
const watchable: typeof seen & { inner?: typeof seen } = seen;
const opened: string[] = [];

/** Without this a test that expects no look would pass wherever none can be seen. */
function checkThatOpensAreSeen(): void {
  if (!watchable.inner && seen !== files.open) throw new Error('this runtime does not let others see what is opened');
}

/** Paths in the order in which they were opened, and how many opens of these have not ended. */
export const looks: { readonly opened: string[]; running: number; most: number } = {
  get opened() {
    checkThatOpensAreSeen();
    return opened;
  },
  running: 0,
  most: 0,
};

const hung = new Map<string, Promise<void>>();

/** Makes every open of the path hang until the function it returns is called. */
export function hangOpen(scope: Scope, path: string): () => void {
  checkThatOpensAreSeen();
  let letGo = (): void => {};
  hung.set(
    path,
    new Promise((resolve) => {
      letGo = resolve;
    }),
  );
  const release = (): void => {
    hung.delete(path);
    letGo();
  };
  scope.after(release); // a failed test must not hold up the next
  return release;
}

const open = watchable.inner ?? files.open;
async function watchedOpen(...args: Parameters<typeof open>): ReturnType<typeof open> {
  const path = String(args[0]);
  opened.push(path);
  looks.running += 1;
  looks.most = Math.max(looks.most, looks.running);
  try {
    await hung.get(path);
    return await open(...args);
  } finally {
    looks.running -= 1;
  }
}
if (watchable.inner) watchable.inner = watchedOpen;
else Object.assign(files, { open: watchedOpen });
syncBuiltinESMExports();

/** How often the path was opened since a moment of `looks.opened.length`. */
export const opensOf = (path: string, since = 0): number =>
  looks.opened.slice(since).filter((one) => one === path).length;
