// Builds dist/ (what is published) and build/ (tests, examples and scripts as JavaScript, for Node 20).
// The library is emitted by tsc because it keeps the comments people audit; the command is bundled into one file.
// `--library` builds dist/ only, which is all that packing needs.
import { spawnSync } from 'node:child_process';
import { chmodSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

// A clone without its packages is told so, not shown a stack trace.
const { build } = await import('esbuild').catch(() => {
  const command = process.env.NODE_ENV === 'production' ? 'npm ci --include=dev' : 'npm ci';
  console.error(`error: the packages of this project are not installed; run ${command} first`);
  process.exit(1);
});

const root = fileURLToPath(new URL('..', import.meta.url));
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const folders = process.argv.includes('--library') ? ['dist'] : ['dist', 'build'];

/** Runs the compiler, which prints what is wrong with the code itself: a stack trace of this script would bury it. */
function tsc(project) {
  const { status } = spawnSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', project], {
    cwd: root,
    stdio: 'inherit',
  });
  if (status !== 0) process.exit(status ?? 1);
}

for (const folder of folders) rmSync(join(root, folder), { recursive: true, force: true });
tsc('tsconfig.json');
rmSync(join(root, 'dist/cli.d.ts'));
// No import statement is in it: an old Node, which lacks a name that the library imports, could say nothing but a stack
// trace, and the file, copied into a project, must run whether that is of ES modules or of CommonJS.
const old = `'error: mcp-auth-middleware needs Node 20.19, 22.3 or later, and this is ' + process.version`;
const { outputFiles } = await build({
  entryPoints: [join(root, 'cli.ts')],
  outfile: join(root, 'dist/cli.js'),
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node12', // the oldest that is to read the file far enough for the line above
  banner: {
    js:
      'var [major, minor] = process.versions.node.split(".").map(Number);\n' +
      'if (major < 20 || (major === 20 && minor < 19) || !process.getBuiltinModule) {\n' +
      `  console.error(${old});\n  process.exit(1);\n}\n` +
      '(function (builtin, module) {',
  },
  footer: { js: '})(process.getBuiltinModule, {});' },
  define: { VERSION: JSON.stringify(version) }, // the one file may be copied away from package.json
  write: false,
  logLevel: 'warning',
});
// By another name than CommonJS has, for it is read as an ES module where package.json says so.
const [{ text }] = outputFiles;
writeFileSync(join(root, 'dist/cli.js'), text.replaceAll(/\brequire\("/g, 'builtin("')); // over what tsc emitted
chmodSync(join(root, 'dist/cli.js'), 0o755);
if (folders.includes('build')) tsc('test/tsconfig.json');
