// `node build/scripts/runtimes.js bun|deno [SUITE]...`: the library's own suites on a runtime that is not Node, built,
// under its own test runner. test/runtimes/known.json names each test that a runtime cannot pass, and why. It is
// an error when a test fails that is not named there, and when one that is named passes, so the list stays true. The
// last lines are those of `node --test`; a test that is known to fail counts as skipped.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { DOMParser, type Element } from '@xmldom/xmldom';
import { z } from 'zod';
import { root } from '../test/support/support.ts';

const Known = z.strictObject({
  /** Suites that do not test the library inside the runtime, and what they do. */
  elsewhere: z.record(z.string(), z.string()),
  cannot: z.array(
    z.strictObject({
      runtime: z.enum(['bun', 'deno']),
      suite: z.string(),
      /** Whether the test asks for what only Node's test runner or process has, or the runtime's own modules differ. */
      cause: z.enum(['harness', 'runtime']),
      reason: z.string(),
      /** Whether they never end there, or end differently from run to run: then they are left out. */
      unsteady: z.boolean().default(false),
      tests: z.array(z.string()).min(1),
    }),
  ),
});
type Cannot = z.infer<typeof Known>['cannot'];

/** The arguments with which a runtime tests a file, on Bun but for tests of some names, and reports in JUnit's XML. */
const RUNTIMES: Record<string, (file: string, report: string, without: string) => string[]> = {
  bun: (file, report, without) => [
    'test',
    '--preload=./build/test/support/open.js',
    '--timeout=60000',
    `--test-name-pattern=^(?!.*(${without})$)`,
    '--reporter=junit',
    `--reporter-outfile=${report}`,
    file,
  ],
  deno: (file, report) => [
    'test',
    '--import-map=test/runtimes/import-map.json',
    '--allow-all',
    '--no-check',
    `--junit-path=${report}`,
    file,
  ],
};

interface Outcome {
  verdict: 'passed' | 'failed' | 'skipped';
  failure: string;
}
/** By the name of the test with the names of its suites in front. */
type Outcomes = Map<string, Outcome>;

const childOf = (element: Element, ...names: string[]): Element | undefined =>
  [...element.childNodes].find((node): node is Element => names.includes(node.nodeName));

/** Bun nests suites below one for the file; Deno writes their names in front of the test's. */
function nameOf(test: Element): string {
  const names = [test.getAttribute('name') ?? ''];
  for (let suite = test.parentElement; suite?.nodeName === 'testsuite'; suite = suite.parentElement)
    names.unshift(suite.getAttribute('name') ?? '');
  return names.slice(1).join(' > ');
}

/** What a report says of a failure. Bun's says nothing but the type of one that took too long. */
const describe = (failure: Element): string => {
  const text = failure.textContent || failure.getAttribute('message') || failure.getAttribute('type');
  return text ? text.split('\n', 12).join('\n') : 'for no reason that the report gives';
};

function readReport(xml: string): Outcomes {
  const outcomes: Outcomes = new Map();
  for (const test of new DOMParser().parseFromString(xml, 'text/xml').getElementsByTagName('testcase')) {
    const failure = childOf(test, 'failure', 'error');
    const verdict = failure ? 'failed' : childOf(test, 'skipped') ? 'skipped' : 'passed';
    if (outcomes.get(nameOf(test))?.verdict !== 'failed')
      outcomes.set(nameOf(test), { verdict, failure: failure ? describe(failure) : '' });
  }
  // Deno reports a suite like a test, and as failed when one of its tests is: it counts where no test of it did.
  for (const [name, { verdict }] of outcomes) {
    const inside = [...outcomes].filter(([other]) => other.startsWith(`${name} > `));
    const explained = verdict !== 'failed' || inside.some(([, other]) => other.verdict === 'failed');
    if (inside.length > 0 && explained) outcomes.delete(name);
  }
  return outcomes;
}

/** Runs one suite, ten minutes at most. A run without a report, or one that fails beside its tests, is a failure. */
async function runSuite(runtime: string, suite: string, folder: string, cannot: Cannot): Promise<Outcomes> {
  const report = join(folder, `${suite}.xml`);
  const unsteady = cannot.flatMap(({ unsteady, tests }) => (unsteady ? tests : []));
  const names = unsteady.map((test) =>
    test
      .split(' > ')
      .at(-1)
      ?.replace(/[^\w ]/g, '.'),
  );
  const without = names.join('|') || 'no test is left out';
  const child = spawn(runtime, RUNTIMES[runtime]?.(`./build/test/${suite}.test.js`, report, without), {
    cwd: root,
    env: { ...process.env, NO_COLOR: '1' },
    timeout: 600_000,
    killSignal: 'SIGKILL',
  });
  const [stdout, stderr, [code, signal]] = await Promise.all([
    buffer(child.stdout),
    buffer(child.stderr),
    once(child, 'close'),
  ]);
  const outcomes = existsSync(report) ? readReport(readFileSync(report, 'utf8')) : new Map<string, Outcome>();
  const failed = [...outcomes.values()].some(({ verdict }) => verdict === 'failed');
  if (outcomes.size === 0 || (code !== 0 && !failed)) {
    const [printed, complained] = [stdout, stderr].map((output) => output.toString().slice(-2000));
    const failure = `exit status ${code ?? signal}\n${printed}\n${complained}`;
    outcomes.set('the suite as a whole', { verdict: 'failed', failure });
  }
  return outcomes;
}

/** Prints what became of a suite, and returns the counts of it. */
function judge(suite: string, outcomes: Outcomes, cannot: Cannot): { pass: number; fail: number; skipped: number } {
  const known = new Map(
    cannot.flatMap(({ cause, reason, tests }) => tests.map((test) => [test, `${cause}: ${reason}`])),
  );
  const failed = [...outcomes].filter(([, { verdict }]) => verdict === 'failed');
  const unknown = failed.filter(([name]) => !known.has(name));
  const left = new Set(cannot.flatMap(({ unsteady, tests }) => (unsteady ? tests : [])));
  const stale = [...known.keys()].filter((name) => !left.has(name) && outcomes.get(name)?.verdict !== 'failed');
  const pass = [...outcomes.values()].filter(({ verdict }) => verdict === 'passed').length;
  console.log(`${suite}: ${outcomes.size} tests, ${pass} passed, ${failed.length - unknown.length} known to fail`);
  for (const [name, reason] of known) console.log(`  cannot: ${name} (${reason})`);
  for (const [name, { failure }] of unknown) console.log(`  FAILED: ${name}\n${failure.replace(/^/gm, '    ')}`);
  for (const name of stale)
    console.log(
      `  FAILED: known.json says that this cannot pass: ${outcomes.get(name)?.verdict ?? 'no such test'}: ${name}`,
    );
  return { pass, fail: unknown.length + stale.length, skipped: outcomes.size - pass - unknown.length };
}

/** The suites that a runtime has to pass, or those that were asked for. */
function suitesFor({ elsewhere, cannot }: z.infer<typeof Known>, only: readonly string[]): string[] {
  const ending = '.test.js';
  const files = readdirSync(join(root, 'build/test')).filter((file) => file.endsWith(ending));
  const suites = files.map((file) => file.slice(0, -ending.length));
  const named = [...Object.keys(elsewhere), ...cannot.map(({ suite }) => suite), ...only];
  for (const name of named) if (!suites.includes(name)) throw new Error(`There is no suite called ${name}`);
  return only.length > 0 ? [...only] : suites.filter((suite) => !(suite in elsewhere));
}

const [runtime = '', ...only] = process.argv.slice(2);
if (!(runtime in RUNTIMES)) throw new Error('Usage: node build/scripts/runtimes.js bun|deno [SUITE]...');
const known = Known.parse(JSON.parse(readFileSync(join(root, 'test/runtimes/known.json'), 'utf8')));
const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-runtimes-'));
const total = { pass: 0, fail: 0, skipped: 0 };
const waiting = suitesFor(known, only);
async function work(): Promise<void> {
  for (let suite = waiting.shift(); suite !== undefined; suite = waiting.shift()) {
    const cannot = known.cannot.filter((entry) => entry.runtime === runtime && entry.suite === suite);
    const counts = judge(suite, await runSuite(runtime, suite, folder, cannot), cannot);
    for (const name of ['pass', 'fail', 'skipped'] as const) total[name] += counts[name];
  }
}
await Promise.all([work(), work()]); // most suites wait most of the time
rmSync(folder, { recursive: true, force: true });
console.log(`# tests ${total.pass + total.fail + total.skipped}`);
for (const [name, count] of Object.entries(total)) console.log(`# ${name} ${count}`);
process.exitCode = total.fail > 0 || total.pass === 0 ? 1 : 0;
