// `npm run fuzz`: the laws of test/properties/ on new cases, as many and as long as you like.
import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import type { Law } from '../test/properties/laws.ts';
import { allLaws } from '../test/properties/all.ts';

const ROUND = 1000; // cases

const usage = `Usage: npm run fuzz -- [options]

  --runs N         cases to try, over all laws (default 20000, or no end with --minutes)
  --minutes M      stop after this time
  --seed S         go on with the seed an earlier run printed last (default: a new one)
  --law TEXT       only laws whose name contains TEXT
  --path P         replay one failure, with the --seed, --law and --path its report names

Every round of ${ROUND} cases has a seed of its own, one more than the last, so that a run ended by Ctrl-C
is resumed with the seed it printed last and a run is repeated with the seed it printed first.`;

function readOptions(): { runs: number; deadline: number; seed: number; law: string; path: string | undefined } {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({
    options: { runs: text, minutes: text, seed: text, law: text, path: text, help: { type: 'boolean', short: 'h' } },
  });
  if (values.help) {
    console.log(usage);
    process.exit(0);
  }
  const number = (name: 'runs' | 'minutes' | 'seed', otherwise: number): number => {
    const value = values[name];
    if (value !== undefined && !/^\d{1,10}(\.\d+)?$/.test(value)) throw new TypeError(`--${name} takes a number`);
    return value === undefined ? otherwise : Number(value);
  };
  const minutes = number('minutes', Infinity);
  return {
    runs: number('runs', minutes === Infinity ? 20_000 : Infinity),
    deadline: performance.now() + minutes * 60_000,
    seed: number('seed', randomInt(1_000_000_000)),
    law: values.law ?? '',
    path: values.path,
  };
}

/** A round's share of cases; with few laws chosen they share the round among them. */
function casesOf(laws: readonly Law[], { share }: Law): number {
  return Math.ceil((share * ROUND) / laws.reduce((sum, law) => sum + law.share, 0));
}

const options = readOptions();
const cleanups: (() => unknown)[] = [];
const laws = (await allLaws({ after: (cleanup) => cleanups.push(cleanup) })).filter(({ name }) =>
  name.includes(options.law),
);
if (laws.length === 0) throw new TypeError(`--law: no law has ${JSON.stringify(options.law)} in its name`);

const counts = new Map(laws.map(({ name }) => [name, 0]));
const started = performance.now();
let { seed } = options;
let done = 0;
let failed = false;
let shown = started;

function progress(): void {
  const seconds = Math.round((performance.now() - started) / 1000);
  console.log(`${done.toLocaleString('en')} cases in ${seconds} s; next seed ${seed}`);
  shown = performance.now();
}

/** Says how to see a failure again before the report, which is long. */
async function tryLaw(law: Law, cases: number): Promise<void> {
  const failure = await law.check({ seed, cases, path: options.path });
  if (failure === undefined) {
    counts.set(law.name, (counts.get(law.name) ?? 0) + (options.path === undefined ? cases : 1));
    return;
  }
  failed = true;
  const path = /path: "([^"]*)"/.exec(failure)?.[1];
  console.error(
    `\nerror: "${law.name}" does not hold\n` +
      `  again: npm run fuzz -- --seed ${seed} --law "${law.name}" --path "${path}"\n\n${failure}\n`,
  );
}

process.on('uncaughtExceptionMonitor', () => console.error(`\nerror: the process ends in the round of --seed ${seed}`));
console.log(`Node ${process.version}, first seed ${seed}`);
while (!failed && done < options.runs && performance.now() < options.deadline) {
  await Promise.all(laws.map((law) => tryLaw(law, casesOf(laws, law)))); // together, for RSA runs on other threads
  done = [...counts.values()].reduce((sum, count) => sum + count, 0);
  if (failed || options.path !== undefined) break;
  seed += 1;
  if (performance.now() - shown > 10_000) progress();
}
progress();
for (const [name, count] of counts) console.log(`  ${count.toLocaleString('en').padStart(9)}  ${name}`);
for (const cleanup of cleanups) await cleanup();
process.exitCode = failed ? 1 : 0;
