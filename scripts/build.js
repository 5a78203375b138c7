// Builds dist/ (what is published) and build/ (tests, examples and scripts as JavaScript, for Node 20).
// The library is emitted by tsc because it keeps the comments people audit; the command is bundled into one file.
import { execFileSync } from 'node:child_process';
import { chmodSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
const tsc = (...args) =>
  execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), ...args], { cwd: root, stdio: 'inherit' });

for (const folder of ['dist', 'build']) rmSync(join(root, folder), { recursive: true, force: true });
tsc('-p', 'tsconfig.json');
rmSync(join(root, 'dist/cli.d.ts'));
await build({
  entryPoints: [join(root, 'cli.ts')],
  outfile: join(root, 'dist/cli.js'),
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20.19',
  allowOverwrite: true,
  logLevel: 'warning',
});
chmodSync(join(root, 'dist/cli.js'), 0o755);
if (!process.argv.includes('--library')) tsc('-p', 'test/tsconfig.json');
