// What is in use and what is not: memory after a collection, and objects that nobody holds any more.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

const { Bun: bun } = globalThis as { Bun?: { gc(now: boolean): void } };
if (!bun) setFlagsFromString('--expose-gc');
export const collect: () => void = bun ? () => bun.gc(true) : runInNewContext('gc');

/** Octets that are still in use, on the heap and beside it. */
export async function used(): Promise<number> {
  for (let i = 0; i < 3; i += 1) {
    await new Promise(setImmediate);
    collect();
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

/** Whether the object is collected within so many collections. */
export async function isCollected(reference: WeakRef<object>, rounds = 50): Promise<boolean> {
  for (let i = 0; i < rounds; i += 1) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    collect();
    if (reference.deref() === undefined) return true;
  }
  return false;
}
