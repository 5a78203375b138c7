// What the parts of the bench share: its options, its rows, and how two sides are compared.
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';

const help = `usage: npm run bench -- [options]

  --only PART,…   some of the parts: cold, calls, known, instructions, overload, startUp, refusals
  --old FILE      another build of the library, …/dist/mcp-auth.js: both and a bare server in turns, and nothing else
  --short         seconds instead of minutes; fails for what is counted and never for a time: its times say nothing
  --markdown      print a Markdown table; with --short-table only its eight main rows, for the README
  --json          print everything as JSON
  --svg FILE      draw the main ratios as a chart, too`;

function readOptions() {
  const flag = { type: 'boolean', default: false } as const;
  const text = { type: 'string' } as const;
  const flags = { short: flag, markdown: flag, 'short-table': flag, json: flag, help: flag };
  try {
    const { values } = parseArgs({ options: { ...flags, only: text, old: text, svg: text } });
    if (values.old !== undefined && values.only !== undefined)
      throw new Error('--old is a part of its own, without --only');
    if (!values.help) return values;
    console.log(help);
    process.exit();
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}\n\n${help}`);
    process.exit(2);
  }
}

export const options = readOptions();
export const { short } = options;

/** A path as whoever typed it meant it: npm runs scripts in the package's folder. */
export const fromTyped = (path: string): string => resolve(process.env['INIT_CWD'] ?? '.', path);

export interface Row {
  what: string;
  figure: string;
  /** What it is measured against, and the figure of that. */
  against?: string;
  reference?: string;
  ratio?: number;
  /** The lowest and the highest ratio of a round. */
  spread?: [number, number];
  target?: string;
  met?: boolean;
  /** One of the eight rows that the README shows. */
  main?: true;
  /** What the chart calls it, when it is in there. */
  label?: string;
}

export const rows: Row[] = [];
export const wrong: string[] = [];

/** A fact that is counted, and so must hold on any machine. */
export function expect(what: string, actual: unknown, expected: unknown): void {
  if (JSON.stringify(actual) !== JSON.stringify(expected))
    wrong.push(`${what}: ${JSON.stringify(actual)}, not ${JSON.stringify(expected)}`);
}

export const note = (line: string): void => {
  process.stderr.write(`${line}\n`);
};
export const median = (values: number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
export const round = (value: number): string => value.toLocaleString('en', { maximumSignificantDigits: 3 });
export const perSecond = (value: number): string => `${round(value)}/s`;

/** Runs the sides in turns, each time in the other order. A round before the first warms them up. */
export async function inTurns<Name extends string>(
  rounds: number,
  sides: Record<Name, () => Promise<number>>,
): Promise<Record<Name, number[]>> {
  const names = Object.keys(sides) as Name[];
  const values = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<Name, number[]>;
  if (!short) for (const name of names) await sides[name]();
  for (let i = 0; i < rounds; i += 1) {
    for (const name of i % 2 === 0 ? names : names.toReversed()) values[name].push(await sides[name]());
  }
  return values;
}

/** Two sides of the same rounds: the medians, the median of the rounds' ratios, and their spread. */
export function compare(
  row: Pick<Row, 'what' | 'against' | 'main' | 'label'>,
  ours: number[],
  others: number[],
  atLeast?: number,
  where = '',
): void {
  const ratios = ours.map((one, i) => one / (others[i] ?? NaN));
  const ratio = median(ratios);
  rows.push({
    ...row,
    figure: perSecond(median(ours)),
    reference: perSecond(median(others)),
    ratio,
    ...(ratios.length > 1 && { spread: [Math.min(...ratios), Math.max(...ratios)] }),
    ...(atLeast !== undefined && { target: `≥ ${atLeast}${where}`, met: ratio >= atLeast }),
  });
}
