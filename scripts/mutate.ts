// `npm run mutate`: breaks the audit surface of mcp-auth.ts in one place at a time and expects a test to notice.
// The operators are textual and know nothing of the code but its banners and that prettier wrote its lines, so they
// need no care when it changes. Not part of CI: it takes long, and a survivor needs a reader: a test is missing, or the
// mutant does what the original does. SECURITY.md sums up the last run.
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
  ...['bytes', 'header', 'properties', 'claims', 'jws', 'jwk', 'jwe', 'attacks', 'issuers', 'verifier'],
  ...['context', 'http'], // what the middleware adds: who the server is, and users that runAs need not copy
];
/** The suites of a part of the audit surface that are not called what it is called. */
const SUITES_OF = new Map([
  ['keys', ['jwk']],
  ['jwe', ['header', 'jwe']],
]);

interface Mutant {
  line: number;
  part: string;
  before: string;
  after: string;
  /** As JavaScript. */
  code: string;
}

// esbuild belongs to the root, whose packages the types of this folder do not see. It strips types and finds what is no
// program.
const { transform } = createRequire(join(root, 'package.json'))('esbuild') as { transform: typeof Transform };

/** The program without types, comments and form; undefined when it is none. */
const emit = (source: string): Promise<string | undefined> =>
  transform(source, { loader: 'ts', format: 'esm', target: 'node20.19', logLevel: 'silent' }).then(
    ({ code }) => code,
    () => undefined,
  );

const COMMENT = String.raw`\/\/[^\n]*|\/\*[^]*?\*\/`;
const STRING = String.raw`'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|\`(?:[^\`\\]|\\.)*\``;
const CLASS = String.raw`\[(?:[^\]\\\n]|\\.)*\]`;
const REGEXP = String.raw`(?<=[(=,:!&|?;]\s*)\/(?![/*])(?:[^/\\\n[]|\\.|${CLASS})+\/[a-z]*`;

/** The same text with literals underlined and comments blank, so that an operator found is one. */
function blank(source: string): string {
  return source.replace(new RegExp(`${COMMENT}|${STRING}|${REGEXP}`, 'g'), (text) =>
    text.replace(/[^\n]/g, /^\/[/*]/.test(text) ? ' ' : '_'),
  );
}

/** Whether the expression goes on after this line: prettier breaks one after an operator or before `.`, `?` and `:`. */
const goesOn = (code: string, newline: number): boolean =>
  /[-+*%<>=!&|?:(,]\s*$/.test(code.slice(Math.max(0, newline - 200), newline)) ||
  /^\s*[.?:)\]]/.test(code.slice(newline, newline + 200));

/** From `at`, in steps of 1 or -1, to where the operand there ends: a foreign bracket or a weaker operator. */
function operandEnd(code: string, at: number, step: 1 | -1): number {
  const [opening, closing] = step > 0 ? ['([{', ')]}'] : [')]}', '([{'];
  let depth = 0;
  for (let i = at; i >= 0 && i < code.length; i += step) {
    const char = code.charAt(i);
    if (opening.includes(char)) depth += 1;
    if (closing.includes(char) && (depth -= 1) < 0) return i;
    if (depth > 0) continue;
    const pair = step > 0 ? code.slice(i, i + 2) : code.slice(i - 1, i + 1);
    if (';,'.includes(char) || (char === '\n' && !goesOn(code, i))) return i;
    if (pair === '&&' || pair === '||' || pair === '??' || pair === '=>') return i;
    if ((char === '?' || char === ':') && /\s/.test(code.charAt(i + 1))) return i;
    if (step < 0 && char === '=' && /[ (]/.test(code.charAt(i - 1)) && /\s/.test(code.charAt(i + 1))) return i;
    if (step < 0 && /\breturn $/.test(code.slice(i - 7, i + 1))) return i;
  }
  return at;
}

/** Binary operators stand between two spaces, or a space and the end of a line. */
const binary = (operator: string): RegExp =>
  new RegExp(`(?<=\\s)${operator.replace(/[|?+]/g, String.raw`\$&`)}(?=\\s)`, 'g');

const SWAPS: [original: RegExp, others: string[]][] = [
  [binary('<'), ['<=', '>']],
  [binary('>'), ['>=', '<']],
  [binary('<='), ['<']],
  [binary('>='), ['>']],
  [binary('==='), ['!==']],
  [binary('!=='), ['===']],
  [binary('&&'), ['||']],
  [binary('||'), ['&&']],
  [binary('??'), ['&&']],
  [binary('+'), ['-']],
  [binary('-'), ['+']],
  [binary('%'), ['*']],
  [/\btrue\b/g, ['false']],
  [/\bfalse\b/g, ['true']],
  [/\.every\(/g, ['.some(']],
  [/\.some\(/g, ['.every(']],
  [/!(?!=)/g, ['']],
];

type Edit = [from: number, to: number, text: string];

/** Where the statement that begins at `start` ends, with its semicolon; undefined when it is none, but part of one. */
function statementEnd(code: string, start: number): number | undefined {
  if (!'{};:'.includes(code.slice(0, start).trimEnd().at(-1) ?? ';')) return undefined; // the body of an if, too
  let depth = 0;
  for (let i = start; i < code.length; i += 1) {
    const char = code.charAt(i);
    if ('([{'.includes(char)) depth += 1;
    if (')]}'.includes(char) && (depth -= 1) < 0) return undefined;
    if (depth === 0 && char === ',') return undefined;
    if (depth === 0 && char === ';') return i + 1;
  }
  return undefined;
}

/** What leaves something out: an operand, a check, a statement. */
function* omissions(code: string): Generator<Edit> {
  for (const { index: at } of code.matchAll(/(?<=\s)(?:&&|\|\|)(?=\s)/g)) {
    yield [at - 1, operandEnd(code, at + 2, 1), '']; // without its right operand, and without its left one
    yield [operandEnd(code, at - 1, -1) + 1, at + 2, ''];
  }
  const brackets = code.replaceAll(/&&|\|\||\?\?|=>|[?:;,\n]/g, (text) => '_'.repeat(text.length));
  for (const { index } of code.matchAll(/\bif \(/g)) yield [index + 4, operandEnd(brackets, index + 4, 1), 'false'];
  for (const { index, 0: indent } of code.matchAll(
    /(?<=\n) +(?=(?:throw|return) |[a-z][\w.]*\(|[a-z][\w.[\]]* [+-]?= )/g,
  )) {
    const from = index + indent.length;
    const to = statementEnd(code, from);
    if (to !== undefined) yield [from, to, ''];
  }
}

/** What puts another operator, number or name in the place of one. */
function* swaps(source: string, code: string): Generator<Edit> {
  for (const [original, others] of SWAPS)
    for (const { index, 0: text } of code.matchAll(original))
      for (const other of others) yield [index, index + text.length, other];
  for (const { index, 0: text } of code.matchAll(/(?<![\w.$])\d[\d_]*(?![\w.])/g))
    yield [index, index + text.length, String(Number(text.replaceAll('_', '')) + 1)];
  for (const { index, 0: text } of code.matchAll(/(?<![\w.$])\d[\d_]*n\b/g))
    yield [index, index + text.length, `${BigInt(text.slice(0, -1)) + 1n}n`];
  // Names in the code, but not what an error says.
  for (const { index, 0: text } of source.matchAll(/'[\w.-]+'/g)) {
    const last = index + text.length - 1;
    if (code.charAt(index) === '_' && !/Error\(\s*$/.test(code.slice(0, index))) yield [last, last, 'x'];
  }
}

const lineOf = (text: string, line: number): string => text.split('\n')[line - 1]?.trim() ?? '';

/** All mutants of the audit surface that are programs, each other than the original and than the others. */
async function listMutants(source: string): Promise<Mutant[]> {
  const start = source.indexOf('\n// ## Audit surface: ');
  const end = source.indexOf('\n// End of the audit surface.');
  if (start < 0 || end < start) throw new Error('mcp-auth.ts has lost the banners of its audit surface');
  const surface = source.slice(start, end);
  const code = blank(surface);
  const mutants = new Map<string | undefined, Mutant | undefined>([[await emit(source), undefined]]);
  for (const [from, to, text] of [...swaps(surface, code), ...omissions(code)]) {
    const mutated = source.slice(0, start + from) + text + source.slice(start + to);
    const emitted = await emit(mutated);
    if (emitted === undefined || mutants.has(emitted)) continue;
    const line = source.slice(0, start + from).split('\n').length;
    const parts = surface.slice(0, from).match(/(?<=\n\/\/ ## Audit surface: )\w+/g);
    const part = parts?.at(-1)?.toLowerCase() ?? '';
    mutants.set(emitted, { line, part, before: lineOf(source, line), after: lineOf(mutated, line), code: emitted });
  }
  return [...mutants.values()].filter((mutant) => mutant !== undefined).sort((a, b) => a.line - b.line);
}

const describe = ({ line, before, after }: Mutant): string => `mcp-auth.ts:${line}\n  - ${before}\n  + ${after}`;

/**
 * A copy of what the suites need, in which a mutant takes the place of the library.
 * They find it by the package's own name.
 */
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
    const file = join('build/test', `${suite}.test.js`);
    const child = spawn(process.execPath, ['--no-warnings', '--test-reporter=tap', file], {
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
  const own = SUITES_OF.get(part) ?? [part];
  return [...SUITES].sort((a, b) => Number(own.includes(b)) - Number(own.includes(a)));
}

async function tryMutants(mutants: readonly Mutant[], jobs: number): Promise<void> {
  let killed = 0;
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
      writeFileSync(join(sandbox, 'dist/mcp-auth.js'), mutant.code);
      let killer: string | undefined;
      for (const suite of inOrder(mutant)) if (killer === undefined && !(await passes(sandbox, suite))) killer = suite;
      if (killer !== undefined) {
        killed += 1;
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
  console.log(`${mutants.length} mutants: ${killed} killed, ${survived} survived`);
  for (const [suite, count] of firstTo) console.log(`  ${String(count).padStart(5)}  first noticed by ${suite}`);
}

const text = { type: 'string' } as const;
const flag = { type: 'boolean' } as const;
const { values } = parseArgs({ options: { lines: text, jobs: text, list: flag, help: { ...flag, short: 'h' } } });
const ranges = values.lines?.split(',').map((range) => range.split('-').map(Number));
const isListed = (line: number): boolean =>
  ranges?.some(([from = NaN, to = from]) => line >= from && line <= to) ?? true;
if (values.help) console.log(usage);
else {
  const all = await listMutants(readFileSync(join(root, 'mcp-auth.ts'), 'utf8'));
  const mutants = all.filter(({ line }) => isListed(line));
  if (values.list) console.log(`${mutants.map(describe).join('\n')}\n${mutants.length} mutants`);
  else await tryMutants(mutants, Number(values.jobs ?? availableParallelism()));
}
