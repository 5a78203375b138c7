// The bench's row in instructions, as valgrind counts them: what a known token costs whatever else the machine does.
// Without a socket, so without the kernel, whose work is most of a request that comes over one.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { root } from '../test/support/support.js';
import { input } from './bench-keys.js';
import { expect, note, round, rows } from './bench-rows.js';

// The first ones are not compiled yet, and what starts up is no request: so the difference of two runs.
const [FEWER, MORE] = [20_000, 50_000];
const VALGRIND = ['--tool=cachegrind', '--cache-sim=no', '--cachegrind-out-file=/dev/null', '--smc-check=all-non-file'];
// One thread, or compiling and collecting count differently each time; under Maglev, valgrind does not end on Node 24.
const V8 = ['--single-threaded', '--no-maglev', '--hash-seed=1', '--min-semi-space-size=16'];
const NODE = [process.execPath, ...V8, '--no-warnings'];

async function countRun(name: string, requests: number, library: string | undefined): Promise<number> {
  const program = [join(root, 'build/scripts/bench-pipe.js'), name, String(requests)];
  const env = { ...process.env, BENCH_INPUT: JSON.stringify(input), BENCH_LIBRARY: library };
  const { stderr } = await promisify(execFile)('valgrind', [...VALGRIND, ...NODE, ...program], { env });
  return Number(/ I +refs: +([\d,]+)/.exec(stderr)?.[1]?.replaceAll(',', ''));
}

async function perRequest(name: string, library?: string): Promise<number> {
  const [fewer, more] = await Promise.all([countRun(name, FEWER, library), countRun(name, MORE, library)]);
  return (more - fewer) / (MORE - FEWER);
}

/** @param old URL of another build of the library */
export async function instructions(old?: string): Promise<void> {
  try {
    await promisify(execFile)('valgrind', ['--version']);
  } catch (error) {
    if (process.env['CI'] !== undefined) throw error;
    return note('no valgrind here: the row in instructions is left out');
  }
  const [ours, bare] = [await perRequest('ours'), await perRequest('bare')];
  const row = (against: string, other: number, atMost: number): void => {
    const met = ours / other <= atMost;
    const what = 'instructions of a request with a known token, without a socket';
    const [figure, reference] = [round(ours), round(other)];
    rows.push({ what, figure, against, reference, ratio: ours / other, target: `≤ ${atMost}`, met });
    expect(`${what}, beside ${against}, at most ${atMost}`, met, true);
  };
  row('bare', bare, 1.5);
  // What V8 inlines differs from build to build, and with it one or two percent.
  if (old !== undefined) row('the old build', await perRequest('ours', old), 1.02);
}
