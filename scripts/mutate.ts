// `npm run mutate`: breaks the audit surface of mcp-auth.ts in one place at a time and expects a test to notice.
// The operators are textual and know nothing of the code but its banners, so they need no care when it changes. Not part of CI: it takes long,
// and a survivor needs a reader: a test is missing, or the mutant does what the original does. SECURITY.md sums up the last run.
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { transform as Transform } from 'esbuild';
import { root } from '../test/support/support.ts';

const usage = `Usage: npm run mutate -- [options]

  --lines LIST   only mutants of these lines of mcp-auth.ts, as 240,250-260
  --jobs N       mutants at once (default: one a core)
  --list         print the mutants and try none`;

/** Those that hold the audit surface, the quickest first; the first failure of a mutant is enough. */
const SUITES = [
  'bytes',
  'header',
  'properties',
  'claims',
  'jws',
  'jwk',
  'key-members',
  'jwe',
  'attacks',
  'issuers',
  'verifier',
].map((name) => join('build/test', `${name}.test.js`));

interface Mutant {
  line: number;
  part: string;
  before: string;
  after: string;
  source: string;
}

/** The same text with strings, templates, regular expressions and comments blanked, so that an operator found is one. */
function blank(source: string): string {
  const literals =
    /\/\/[^\n]*|\/\*[^]*?\*\/|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`|(?<=[(=,:!&|?;]\s*)\/(?![/*])(?:[^/\\\n[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/g;
  return source.replace(literals, (text) => text.replace(/[^\n]/g, '_'));
}

/** From `at`, in steps of 1 or -1, to where the operand there ends: a bracket that is not its own, or a weaker operator. */
function operandEnd(code: string, at: number, step: 1 | -1): number {
  const [opening, closing] = step > 0 ? ['([{', ')]}'] : [')]}', '([{'];
  let depth = 0;
  for (let i = at; i >= 0 && i < code.length; i += step) {
    const char = code.charAt(i);
    if (opening.includes(char)) depth += 1;
    if (closing.includes(char) && (depth -= 1) < 0) return i;
    if (depth > 0) continue;
    const pair = step > 0 ? code.slice(i, i + 2) : code.slice(i - 1, i + 1);
    if (';,\n'.includes(char) && !/^\s*&&/.test(code.slice(i, i + 80))) return i;
    if (pair === '&&' || pair === '||' || pair === '??' || pair === '=>') return i;
    if ((char === '?' || char === ':') && code.charAt(i + 1) === ' ') return i;
    if (step < 0 && char === '=' && /[ (]$/.test(code.slice(0, i)) && code.charAt(i + 1) === ' ') return i;
    if (step < 0 && /\breturn $/.test(code.slice(0, i + 1))) return i;
  }
  return at;
}

const SWAPS = new Map([
  [' < ', [' <= ', ' > ']],
  [' > ', [' >= ', ' < ']],
  [' <= ', [' < ']],
  [' >= ', [' > ']],
  [' === ', [' !== ']],
  [' !== ', [' === ']],
  [' && ', [' || ']],
  [' || ', [' && ']],
  [' ?? ', [' && ']],
  [' + ', [' - ']],
  [' - ', [' + ']],
  [' % ', [' * ']],
  ['true', ['false']],
  ['false', ['true']],
  ['.every(', ['.some(']],
  ['.some(', ['.every(']],
  ['!', ['']],
]);

/** All replacements [from, to, text] that the operators make in the source between two positions. */
function* edits(source: string, start: number, end: number): Generator<[from: number, to: number, text: string]> {
  const code = blank(source);
  const matches = (pattern: RegExp): RegExpMatchArray[] => [...code.slice(start, end).matchAll(pattern)];
  for (const [original, others] of SWAPS) {
    for (let at = code.indexOf(original, start); at >= 0 && at < end; at = code.indexOf(original, at + 1)) {
      const word = /^\w/.test(original) && /\w/.test(code.charAt(at - 1) + code.charAt(at + original.length));
      if (!word && !(original === '!' && code.charAt(at + 1) === '='))
        for (const other of others) yield [at, at + original.length, other];
    }
  }
  for (const { index } of matches(/ (?:&&|\|\|) /g)) {
    const at = start + (index ?? 0);
    yield [at, operandEnd(code, at + 4, 1), '']; // without its right operand, and without its left one
    yield [operandEnd(code, at - 1, -1) + 1, at + 3, ''];
  }
  for (const { index } of matches(/\bif \(/g)) {
    const from = start + (index ?? 0) + 4;
    const to = operandEnd(
      code.replaceAll(/&&|\|\||\?\?|=>|[?:;,\n]/g, (text) => '_'.repeat(text.length)),
      from,
      1,
    );
    yield [from, to, 'false']; // without the check
  }
  for (const { index, 0: text } of matches(
    /(?<=\n) +(?:[a-z][\w.]*\(.*\)|throw .*|return .*|[a-z][\w.[\]]* [+-]?= .*);(?=\n| \/)/g,
  )) {
    const from = start + (index ?? 0);
    yield [from, from + text.length, '']; // without the statement
  }
  for (const { index, 0: text } of matches(/(?<![\w.$])\d[\d_]*(?![\w.])/g)) {
    const from = start + (index ?? 0);
    if (/[^|]\| $/.test(source.slice(0, from)) || /^ \| /.test(source.slice(from + text.length))) continue; // a type
    yield [from, from + text.length, String(Number(text.replaceAll('_', '')) + 1)];
  }
  for (const { index, 0: text } of matches(/(?<![\w.$])\d[\d_]*n\b/g)) {
    const from = start + (index ?? 0);
    yield [from, from + text.length, `${BigInt(text.slice(0, -1)) + 1n}n`];
  }
  // Names in the code: not what an error says, and not what is only a type.
  for (const { index, 0: text } of source.slice(start, end).matchAll(/'[\w.-]+'/g)) {
    const from = start + (index ?? 0);
    const [before, after] = [source.slice(source.lastIndexOf('\n', from) + 1, from), source.slice(from + text.length)];
    if (/[^|]\| $/.test(before) || /^ \| /.test(after)) continue; // a type
    if (
      code.charAt(from) === '_' &&
      !/(?:Error\(|interface .*|type .*|: )$|^ *(?:\/\/|\*|\/\*\*)|^(?:interface|type) /.test(before)
    )
      yield [from + text.length - 1, from + text.length - 1, 'x'];
  }
}

function listMutants(source: string): Mutant[] {
  const start = source.indexOf('// ## Audit surface: bytes');
  const end = source.indexOf('// End of the audit surface.');
  if (start < 0 || end < start) throw new Error('mcp-auth.ts has lost the banners of its audit surface');
  const mutants = new Map<string, Mutant>();
  for (const [from, to, text] of edits(source, start, end)) {
    const mutated = source.slice(0, from) + text + source.slice(to);
    const line = source.slice(0, from).split('\n').length;
    const part =
      source
        .slice(0, from)
        .match(/(?<=\n\/\/ ## Audit surface: )\w+/g)
        ?.at(-1)
        ?.toLowerCase() ?? '';
    const [before = '', after = ''] = [source, mutated].map((code) => code.split('\n')[line - 1]?.trim());
    if (mutated !== source && before !== '')
      mutants.set(`${line} ${after.replaceAll(' ', '')}`, {
        line,
        part: part === 'keys' ? 'jwk' : part,
        before,
        after,
        source: mutated,
      });
  }
  return [...mutants.values()].sort((a, b) => a.line - b.line);
}

const describe = ({ line, before, after }: Mutant): string => `mcp-auth.ts:${line}\n  - ${before}\n  + ${after}`;

/** A copy of what the suites need, in which a mutant takes the place of the library. They find it by the package's own name. */
function makeSandbox(folder: string): string {
  const sandbox = join(folder, 'repository');
  mkdirSync(sandbox, { recursive: true });
  for (const name of ['package.json', 'mcp-auth.ts', 'cli.ts', 'dist', 'build', 'test', 'examples', 'tsconfig.json'])
    cpSync(join(root, name), join(sandbox, name), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(sandbox, 'node_modules'));
  const vectors = join(root, '../shared');
  if (existsSync(vectors)) symlinkSync(vectors, join(folder, 'shared'));
  return sandbox;
}

/** Whether the suite passes; its first failure is enough. One that never ends has noticed as well. */
function passes(sandbox: string, suite: string): Promise<boolean> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--no-warnings', '--test-reporter=tap', suite], {
      cwd: sandbox,
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 120_000,
      killSignal: 'SIGKILL',
    });
    child.stdout.setEncoding('utf8').on('data', (lines: string) => {
      if (/^ *not ok /m.test(lines)) child.kill('SIGKILL');
    });
    child.once('close', (code) => resolve(code === 0));
  });
}

/** The suites in the order in which they notice soonest: that of the mutant's own part of the file, then the others. */
function inOrder({ part }: Mutant): string[] {
  return [...SUITES].sort((a, b) => Number(b.includes(`/${part}.`)) - Number(a.includes(`/${part}.`)));
}

async function tryMutants(mutants: readonly Mutant[], jobs: number): Promise<void> {
  // esbuild belongs to the root, whose packages the types of this folder do not see. It strips types here, and finds what is no program.
  const { transform } = createRequire(join(root, 'package.json'))('esbuild') as { transform: typeof Transform };
  const counts = { killed: 0, noProgram: 0 };
  const firstTo = new Map(SUITES.map((suite) => [suite, 0]));
  const waiting = [...mutants];
  let survived = 0;
  const folder = mkdtempSync(join(tmpdir(), 'mutants-'));
  process.once('SIGINT', () => {
    rmSync(folder, { recursive: true, force: true });
    process.exit(130);
  });

  const work = async (sandbox: string): Promise<void> => {
    for (let mutant = waiting.shift(); mutant; mutant = waiting.shift()) {
      const code = await transform(mutant.source, {
        loader: 'ts',
        format: 'esm',
        target: 'node20.19',
        logLevel: 'silent',
      }).then(
        (result) => result.code,
        () => undefined,
      );
      if (code === undefined) {
        counts.noProgram += 1;
        continue;
      }
      writeFileSync(join(sandbox, 'dist/mcp-auth.js'), code);
      let killer: string | undefined;
      for (const suite of inOrder(mutant)) if (killer === undefined && !(await passes(sandbox, suite))) killer = suite;
      if (killer !== undefined) {
        counts.killed += 1;
        firstTo.set(killer, (firstTo.get(killer) ?? 0) + 1);
      } else {
        survived += 1;
        console.log(`survived: ${describe(mutant)}`);
      }
      if (waiting.length % 50 === 0) console.log(`${waiting.length} to go`);
    }
  };

  try {
    const sandboxes = Array.from({ length: jobs }, (_, n) => makeSandbox(join(folder, `${n}`)));
    for (const suite of SUITES)
      if (!(await passes(sandboxes[0] ?? '', suite))) throw new Error(`${suite} fails without a mutant`);
    await Promise.all(sandboxes.map(work));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  console.log(
    `${mutants.length} mutants: ${counts.killed} killed, ${survived} survived, ${counts.noProgram} no program`,
  );
  for (const [suite, count] of firstTo) console.log(`  ${String(count).padStart(5)}  first noticed by ${suite}`);
}

const text = { type: 'string' } as const;
const flag = { type: 'boolean' } as const;
const { values } = parseArgs({ options: { lines: text, jobs: text, list: flag, help: { ...flag, short: 'h' } } });
const ranges = values.lines?.split(',').map((range) => range.split('-').map(Number));
const isListed = (line: number): boolean =>
  ranges?.some(([from = NaN, to = from]) => line >= from && line <= to) ?? true;
const mutants = listMutants(readFileSync(join(root, 'mcp-auth.ts'), 'utf8')).filter(({ line }) => isListed(line));
if (values.help) console.log(usage);
else if (values.list) console.log(`${mutants.map(describe).join('\n')}\n${mutants.length} mutants`);
else await tryMutants(mutants, Number(values.jobs ?? availableParallelism()));
