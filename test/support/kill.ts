// Loaded with --import before the command: ends the process with SIGKILL before, in or after its nth operation that
// changes a file, as MCP_TEST_KILL says (`7 before`); without it, writes the names of these operations to MCP_TEST_LOG.
import child from 'node:child_process';
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const [target = '', moment] = (process.env.MCP_TEST_KILL ?? '').split(' ');
const log = process.env.MCP_TEST_LOG;
const { appendFileSync, writeSync } = fs;
let count = 0;
let inside = false; // an operation that calls another one is one

function die(): never {
  process.kill(process.pid, 'SIGKILL');
  for (;;); // until it arrives
}

/** Does half of what has a half: writes some octets of the text, or of what shred would write. */
function doHalf(name: string, args: unknown[]): void {
  const [descriptor, data] = args;
  if (name === 'writeFileSync' && typeof descriptor === 'number') writeSync(descriptor, String(data).slice(0, 500));
  else if (name === 'writeSync' && typeof descriptor === 'number' && data instanceof Uint8Array)
    writeSync(descriptor, data.subarray(0, 500), 0, Math.min(500, data.length), 0);
  else if (name === 'spawnSync') {
    const { stdio }: { stdio?: unknown[] } = Object(args[2]);
    writeSync(Number(stdio?.[3]), Buffer.alloc(500), 0, 500, 0);
  }
}

/** Whether the call changes a file: opening one to read does not. */
const changes = (name: string, [, flags]: unknown[]): boolean =>
  name !== 'openSync' || flags === 'wx' || (typeof flags === 'number' && (flags & fs.constants.O_RDWR) !== 0);

function watch(owner: object, name: string): void {
  const real: unknown = Reflect.get(owner, name);
  if (typeof real !== 'function') throw new Error(`there is no ${name}`);
  const watched = (...args: unknown[]): unknown => {
    if (inside || !changes(name, args)) return Reflect.apply(real, owner, args);
    inside = true;
    try {
      count += 1;
      if (log !== undefined) appendFileSync(log, `${name}\n`);
      const isTarget = String(count) === target;
      if (isTarget && moment === 'in') doHalf(name, args);
      if (isTarget && moment !== 'after') die();
      const result: unknown = Reflect.apply(real, owner, args);
      if (isTarget) die();
      return result;
    } finally {
      inside = false;
    }
  };
  Object.assign(owner, { [name]: watched });
}

const operations =
  'mkdirSync rmdirSync openSync writeFileSync writeSync fsyncSync fchmodSync fchownSync linkSync renameSync';
for (const name of `${operations} unlinkSync`.split(' ')) watch(fs, name);
watch(child, 'spawnSync');
syncBuiltinESMExports();
