// The built command as the suites of it run it: dist/cli.js as a process of its own, in a folder of its own.
import { cpSync, existsSync, lstatSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { root, run, type Finished, type RunOptions, type Scope } from './support.js';

export const cli: string = join(root, 'dist/cli.js');

/** Runs the command in a folder. */
export function mcp(cwd: string, args: readonly string[], options: RunOptions = {}): Promise<Finished> {
  return run(process.execPath, [cli, ...args], { ...options, cwd });
}

/** The same below another program, such as strace, or a shell's `"$@"`. */
export function mcpUnder(
  cwd: string,
  under: readonly string[],
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> {
  const [program = '', ...rest] = under;
  return run(program, [...rest, process.execPath, cli, ...args], { ...options, cwd });
}

/** A folder of its own, empty or with a copy of some keys, until the scope ends. */
export function folder(scope: Scope, keys?: string): string {
  const path = mkdtempSync(join(tmpdir(), 'mcp-cli-'));
  scope.after(() => rmSync(path, { recursive: true, force: true }));
  if (keys !== undefined) cpSync(keys, join(path, '.keys'), { recursive: true });
  return path;
}

/** Every file below a folder and its content, to see that a run has changed nothing. */
export function contents(path: string): Record<string, string> {
  const files = readdirSync(path, { recursive: true, encoding: 'utf8' }).sort();
  return Object.fromEntries(
    files
      .filter((name) => lstatSync(join(path, name)).isFile())
      .map((name) => [name, readFileSync(join(path, name), 'utf8')]),
  );
}

export const mode = (path: string): string => (lstatSync(path).mode & 0o7777).toString(8).padStart(4, '0');

/** For `skip`: why a test cannot run here. In CI nothing is skipped, and the test fails without its tool. */
export function without(...tools: string[]): string | false {
  const paths = (process.env.PATH ?? '').split(delimiter);
  const missing = tools.filter((tool) => !paths.some((path) => existsSync(join(path, tool))));
  return missing.length > 0 && !process.env.CI ? `needs ${missing.join(', ')}` : false;
}

/** What makes root a user whom file permissions bind: the same uid without any capability. Nothing for other users. */
export const bound: readonly string[] =
  process.getuid?.() === 0 ? ['setpriv', '--bounding-set=-all', '--inh-caps=-all'] : ['env'];
