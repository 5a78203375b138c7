// The types as users meet them, vendored and installed: under their compiler and with the types of their Node.
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { needs, root, run } from './support/support.js';

const compilers = { typescript59: '5.9', typescript6: '6.0', typescript: '7.0' };
const nodeTypes = { 20: 'types-node20', 22: 'types-node22', 24: 'types-node24', 26: '@types/node' };
/** Each target with every flag, and a project with `strict` alone, under which other things are refused. */
const columns = ['ES2022', 'ES2023', 'ESNext', 'strict'];

/** Every flag of the compiler that refuses something. */
const strictness: Record<string, boolean> = {
  allowUnreachableCode: false,
  allowUnusedLabels: false,
  alwaysStrict: true,
  erasableSyntaxOnly: true,
  exactOptionalPropertyTypes: true,
  forceConsistentCasingInFileNames: true,
  isolatedDeclarations: true,
  isolatedModules: true,
  noFallthroughCasesInSwitch: true,
  noImplicitAny: true,
  noImplicitOverride: true,
  noImplicitReturns: true,
  noImplicitThis: true,
  noPropertyAccessFromIndexSignature: true,
  noUncheckedIndexedAccess: true,
  noUncheckedSideEffectImports: true,
  noUnusedLocals: true,
  noUnusedParameters: true,
  strict: true,
  strictBindCallApply: true,
  strictBuiltinIteratorReturn: true,
  strictFunctionTypes: true,
  strictNullChecks: true,
  strictPropertyInitialization: true,
  useUnknownInCatchVariables: true,
  verbatimModuleSyntax: true,
};
/** What the compiler lists beside them and what refuses nothing. */
const notStrictness = ['deduplicatePackages', 'stableTypeOrdering'];

const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const tsc = (compiler: string): string => join(root, 'node_modules', compiler, 'bin/tsc');

function write(path: string, content: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
}

function tsconfig(column: string, files: string[]): string {
  const compilerOptions = {
    ...(column === 'strict' ? { strict: true, target: 'ES2022' } : { ...strictness, target: column }),
    module: 'NodeNext',
    types: ['node'],
    declaration: true,
    skipLibCheck: true, // what is asked is about our text, not about that of @types/node
    rootDir: '.',
    outDir: 'out',
  };
  return JSON.stringify({ compilerOptions, files });
}

/** Where npm has put a package that another one depends on. */
const dependencyOf = (name: string, dependency: string): string =>
  dirname(createRequire(join(root, 'node_modules', name, 'package.json')).resolve(`${dependency}/package.json`));

/** A project with the types of one Node, and a folder for each column. Copies: a link leads back to our own types. */
function project(node: string, types: string): string {
  const path = join(folder, `node${node}`);
  const modules = join(path, 'node_modules');
  cpSync(join(root, 'node_modules', types), join(modules, '@types/node'), { recursive: true });
  cpSync(dependencyOf(types, 'undici-types'), join(modules, 'undici-types'), { recursive: true });
  cpSync(join(root, 'package.json'), join(modules, 'mcp-auth-middleware/package.json'));
  cpSync(join(root, 'dist'), join(modules, 'mcp-auth-middleware/dist'), { recursive: true });
  write(join(path, 'package.json'), '{ "private": true, "type": "module" }');
  const consumer = readFileSync(join(root, 'test/types/node.ts'), 'utf8');
  for (const column of columns) {
    cpSync(join(root, 'mcp-auth.ts'), join(path, column, 'mcp-auth.ts'));
    write(join(path, column, 'installed.ts'), consumer);
    write(join(path, column, 'vendored.ts'), consumer.replace("'mcp-auth-middleware'", "'./mcp-auth.js'"));
    write(join(path, column, 'tsconfig.json'), tsconfig(column, ['mcp-auth.ts', 'vendored.ts', 'installed.ts']));
  }
  return path;
}

describe('the matrix of types', () => {
  before(() => {
    for (const [node, types] of Object.entries(nodeTypes)) project(node, types);
  });

  it('knows every strictness flag of the newest compiler', async () => {
    const { stdout } = await run(process.execPath, [tsc('typescript'), '--all']);
    const [, section = ''] = /### Type Checking\n([^]*?)\n### /.exec(stdout) ?? [];
    const flags = [...section.matchAll(/^--(\w+)/gm)].map(([, flag = '']) => flag);
    assert.ok(flags.length > 15, section);
    assert.deepEqual(
      flags.filter((flag) => !(flag in strictness) && !notStrictness.includes(flag)),
      [],
    );
  });

  it('asserts the type of every export', () => {
    const types = readFileSync(join(root, 'dist/mcp-auth.d.ts'), 'utf8');
    const exports = [
      ...types.matchAll(/^export (?:declare )?(?:\w+ )?(?:function|class|const|type|interface) (\w+)/gm),
    ];
    assert.ok(exports.length > 30);
    const [imports = '', rest = ''] = readFileSync(join(root, 'test/types/node.ts'), 'utf8').split(
      "} from 'mcp-auth-middleware';",
    );
    for (const [, name = ''] of exports) {
      for (const text of [imports, rest]) assert.match(text, new RegExp(`\\b${name}\\b`));
    }
  });

  for (const [compiler, version] of Object.entries(compilers)) {
    describe(`TypeScript ${version}`, () => {
      let output = '';
      before(async () => {
        assert.match(
          (await run(process.execPath, [tsc(compiler), '--version'])).stdout,
          new RegExp(`^Version ${version}\\.`),
        );
        const cells = Object.keys(nodeTypes).flatMap((node) => columns.map((column) => join(`node${node}`, column)));
        for (const cell of cells) rmSync(join(folder, cell, 'out'), { recursive: true, force: true });
        const { stdout, stderr } = await run(process.execPath, [tsc(compiler), '-b', '--force', ...cells], {
          cwd: folder,
          timeout: 600_000,
        });
        assert.equal(stderr, '');
        output = stdout;
      });

      for (const [node, types] of Object.entries(nodeTypes)) {
        const { version: typesVersion } = JSON.parse(
          readFileSync(join(root, 'node_modules', types, 'package.json'), 'utf8'),
        );
        for (const column of columns) {
          it(`@types/node ${typesVersion}, ${column === 'strict' ? 'strict alone' : `target ${column}`}`, () => {
            const cell = `node${node}/${column}`;
            const errors = output.split('\n').filter((line) => line.startsWith(`${cell}/`));
            assert.deepEqual(errors, []);
            for (const name of ['mcp-auth', 'vendored', 'installed']) {
              assert.ok(
                existsSync(join(folder, cell, 'out', `${name}.d.ts`)),
                `${cell}: ${name} was not compiled\n${output}`,
              );
            }
          });
        }
      }
    });
  }
});

describe('the frameworks of the field', () => {
  for (const [compiler, version] of Object.entries(compilers)) {
    it(`take the library without a cast under TypeScript ${version}`, async () => {
      const cwd = join(folder, `frameworks-${compiler}`);
      write(join(cwd, 'package.json'), '{ "private": true, "type": "module" }');
      cpSync(join(root, 'test/types/frameworks.ts'), join(cwd, 'frameworks.ts'));
      write(join(cwd, 'tsconfig.json'), tsconfig('ES2023', ['frameworks.ts']));
      symlinkSync(join(root, 'node_modules'), join(cwd, 'node_modules'));
      const { code, stdout } = await run(process.execPath, [tsc(compiler), '-p', '.'], { cwd, timeout: 300_000 });
      assert.equal(code, 0, stdout);
      assert.ok(existsSync(join(cwd, 'out/frameworks.js')));
    });
  }
});

describe('Deno', () => {
  it('checks the vendored file and its consumer', needs('deno'), async () => {
    const cwd = join(folder, 'deno');
    const consumer = readFileSync(join(root, 'test/types/node.ts'), 'utf8');
    cpSync(join(root, 'mcp-auth.ts'), join(cwd, 'mcp-auth.ts'));
    write(join(cwd, 'consumer.ts'), consumer.replace("'mcp-auth-middleware'", "'./mcp-auth.ts'"));
    const { code, stderr } = await run('deno', ['check', 'mcp-auth.ts', 'consumer.ts'], {
      cwd,
      env: { NO_COLOR: '1' },
      timeout: 300_000,
    });
    assert.equal(code, 0, stderr);
  });
});
