// npm run bench [-- --help]: what the middleware costs beside others, in one run on one machine.
// The sides of a row are measured in turns, so that what else the machine does hits both: a row gives the medians of
// its rounds, and as ratio the median of the rounds' ratios, with the lowest and the highest of them.
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import { root } from '../test/support/support.js';
import { chart } from './bench-chart.js';
import { known, overload, versions } from './bench-http.js';
import { instructions } from './bench-instructions.js';
import { fromTyped, note, options, type Row, round, rows, short, wrong } from './bench-rows.js';
import { calls, cold, refusals, startUp } from './bench-tokens.js';

const parts = { cold, calls, known, instructions: () => instructions(), overload, startUp, refusals };

async function measure(): Promise<void> {
  const only = options.only?.split(',');
  const unknown = only?.filter((name) => !Object.hasOwn(parts, name)) ?? [];
  if (unknown.length > 0) throw new Error(`--only: no part ${unknown.join(', ')} in ${Object.keys(parts).join(', ')}`);
  for (const [name, part] of Object.entries(options.old === undefined ? parts : { versions })) {
    if (only && !only.includes(name)) continue;
    note(`${name} …`);
    await part();
  }
}

const versionOf = (name: string): string =>
  `${name} ${JSON.parse(readFileSync(join(root, 'node_modules', name, 'package.json'), 'utf8')).version}`;
const versionsOf = ['jose', 'fast-jwt', '@modelcontextprotocol/express', 'express', 'autocannon'].map(versionOf);
const cores = `${cpus()[0]?.model.trim()}, ${availableParallelism()} cores`;
const machine = {
  date: new Date().toISOString().slice(0, 10),
  machine: `${cores}, ${round(totalmem() / 2 ** 30)} GiB, ${process.platform} ${process.arch}`,
  versions: [`Node ${process.versions.node}`, `OpenSSL ${process.versions.openssl}`, ...versionsOf].join(', '),
  command: `npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(' ')}` : ''}`,
};

const head = ['what', 'measured', 'against', 'ratio', 'target', ''];
function cellsOf({ what, figure, against, reference, ratio, spread, target = '', met }: Row): string[] {
  const range = spread ? ` (${spread.map((end) => end.toFixed(2)).join('–')})` : '';
  return [
    what,
    figure,
    against ? `${against} ${reference}` : '',
    ratio === undefined ? '' : `${ratio.toFixed(2)}${range}`,
    target,
    met === undefined ? '' : met ? 'met' : 'MISSED',
  ];
}

function printMarkdown(shown: Row[]): void {
  const lines = [head, head.map(() => '---'), ...shown.map(cellsOf)].map(
    (row) => `| ${row.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`,
  );
  console.log([Object.values(machine).join(' · '), '', ...lines].join('\n'));
}

function printText(): void {
  const cells = [head, ...rows.map(cellsOf)];
  const widths = head.map((_, i) => Math.max(...cells.map((row) => (row[i] ?? '').length)));
  for (const [name, value] of Object.entries(machine)) console.log(`${name}: ${value}`);
  console.log();
  for (const row of cells)
    console.log(
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    );
}

try {
  await measure();
  if (options.svg !== undefined) {
    const subtitle = [
      machine.date,
      cores,
      `Node ${process.versions.node}`,
      ...(short ? ['SHORT: NO MEASUREMENT'] : []),
    ];
    writeFileSync(fromTyped(options.svg), chart(rows, subtitle.join(' · ')));
  }
  if (options.json) console.log(JSON.stringify({ ...machine, rows, wrong }, undefined, 2));
  else if (options['short-table']) printMarkdown(rows.filter(({ main }) => main));
  else if (options.markdown) printMarkdown(rows);
  else printText();
} catch (error) {
  note(`error: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
for (const line of wrong) note(`wrong: ${line}`);
if (wrong.length > 0) process.exitCode = 1;
