// What is published and vendored, used as its users do: installed from the tarball, copied as one file, run unbuilt.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { build } from 'esbuild';
import { parse } from 'yaml';
import { needs, root, run, type Finished } from './support/support.js';

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

function project(name: string, files: Record<string, string> = {}): string {
  const path = join(folder, name);
  mkdirSync(path);
  for (const [file, content] of Object.entries(files)) {
    mkdirSync(dirname(join(path, file)), { recursive: true });
    writeFileSync(join(path, file), content);
  }
  return path;
}

/** npm as a user would call it: what `npm test` puts into the environment would point it back at this repository. */
async function npm(cwd: string, ...args: string[]): Promise<Finished> {
  const env = Object.fromEntries(
    Object.keys(process.env)
      .filter((name) => name.startsWith('npm_'))
      .map((name) => [name, undefined]),
  );
  const finished = await run('npm', args, { cwd, env });
  assert.equal(finished.code, 0, finished.stderr);
  return finished;
}

const exported = [
  'AuthError',
  'JWETokenVerifier',
  'KeyError',
  'authMiddleware',
  'bearerToken',
  'compactDecrypt',
  'compactEncrypt',
  'encryptToken',
  'generateKeyPair',
  'getAuth',
  'getAuthInfo',
  'getUser',
  'jwkThumbprint',
  'publicJwks',
  'runAs',
  'withAuth',
  'withAuthFetch',
];

/** A whole server and its client in one file; it ends when it has greeted. */
const greeter = (library: string): string => `
import { once } from 'node:events';
import { createServer } from 'node:http';
import { encryptToken, generateKeyPair, getUser, withAuth } from '${library}';

const { privateJwk, publicJwk } = await generateKeyPair({ modulusLength: 2048 });
const listener = withAuth((_req, res) => void res.end(\`Hello, \${getUser<{ name: string }>().name}!\`), {
  keys: { keys: [privateJwk] },
});
const server = createServer(listener).listen(0, '127.0.0.1');
await once(server, 'listening');
const address = server.address();
if (address === null || typeof address === 'string') throw new Error('no port');
const token = await encryptToken({ name: 'Ada' }, publicJwk);
const headers = { Authorization: \`Bearer \${token}\` };
const response = await fetch(\`http://127.0.0.1:\${address.port}/\`, { headers });
console.log(response.status, await response.text());
server.closeAllConnections();
server.close();
`;

describe('package.json', () => {
  it('has no runtime dependency and three for development', () => {
    for (const kind of [
      'dependencies',
      'optionalDependencies',
      'peerDependencies',
      'bundleDependencies',
      'bundledDependencies',
    ]) {
      assert.equal(manifest[kind], undefined, kind);
    }
    assert.deepEqual(Object.keys(manifest.devDependencies).sort(), ['@types/node', 'esbuild', 'typescript']);
  });

  it('runs nothing when it is installed', () => {
    for (const script of ['preinstall', 'install', 'postinstall', 'prepare'])
      assert.equal(manifest.scripts[script], undefined, script);
  });

  for (const lockfile of ['package-lock.json', 'test/runtimes/package-lock.json']) {
    it(`${lockfile} pins every package by its hash and names no registry`, () => {
      const { packages } = JSON.parse(readFileSync(join(root, lockfile), 'utf8')) as {
        packages: Record<string, Record<string, unknown>>;
      };
      const installed = Object.entries(packages).filter(
        ([path, entry]) => path.includes('node_modules/') && entry.link !== true,
      );
      assert.ok(installed.length > 0);
      for (const [path, entry] of installed) {
        assert.match(String(entry.integrity), /^sha512-/, path);
        assert.equal(entry.resolved, undefined, path);
      }
    });
  }
});

describe('the sources', () => {
  const sources = { 'mcp-auth.ts': ['mcp-auth.ts'], 'cli.ts': ['cli.ts', 'mcp-auth.ts'] };
  for (const [file, expected] of Object.entries(sources)) {
    it(`${file} imports node: modules only${expected.length > 1 ? ' and ./mcp-auth.ts' : ''}`, async () => {
      const { metafile } = await build({
        entryPoints: [file],
        absWorkingDir: root,
        bundle: true,
        write: false,
        metafile: true,
        platform: 'node',
        format: 'esm',
        packages: 'external',
        outfile: 'x.js',
      });
      assert.deepEqual(Object.keys(metafile.inputs).sort(), expected);
      const imports = Object.values(metafile.outputs).flatMap((output) => output.imports.map(({ path }) => path));
      assert.ok(imports.length > 0);
      assert.deepEqual(
        imports.filter((path) => !path.startsWith('node:')),
        [],
      );
    });
  }

  it('cli.ts loads the library only for commands that need it', async () => {
    const cwd = project('without-library');
    await build({
      entryPoints: [join(root, 'cli.ts')],
      bundle: true,
      external: ['./mcp-auth.ts'],
      platform: 'node',
      format: 'esm',
      outfile: join(cwd, 'cli.mjs'),
    });
    for (const args of [['--help'], ['--version'], ['clean']]) {
      const { code, stdout, stderr } = await run(process.execPath, ['cli.mjs', ...args], { cwd });
      assert.deepEqual([code, stderr], [0, ''], args.join(' '));
      assert.notEqual(stdout, '');
    }
    const { code, stderr } = await run(process.execPath, ['cli.mjs', 'generate'], { cwd });
    assert.notEqual(code, 0);
    assert.match(stderr, /ERR_MODULE_NOT_FOUND/);
  });
});

describe('the workflows', () => {
  const workflows = readdirSync(join(root, '.github/workflows'));
  for (const file of workflows) {
    it(`${file} pins every action by its commit and may write nothing but what a job asks for`, () => {
      const text = readFileSync(join(root, '.github/workflows', file), 'utf8');
      const actions = [...text.matchAll(/\buses: (.*)/g)].map(([, action = '']) => action);
      assert.ok(actions.length > 0);
      for (const action of actions) assert.match(action, /^actions\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
      const { permissions, jobs } = parse(text);
      assert.deepEqual(permissions, { contents: 'read' });
      const writing = Object.entries<{ permissions?: object }>(jobs).filter(([, job]) => job.permissions);
      assert.deepEqual(
        writing.map(([name, job]) => ({ file, name, ...job.permissions })),
        file === 'release.yml' ? [{ file, name: 'publish', 'id-token': 'write' }] : [],
      );
    });
  }
});

describe('dist/', () => {
  it('mcp-auth.js keeps the comments that people audit', () => {
    const source = readFileSync(join(root, 'mcp-auth.ts'), 'utf8');
    const built = readFileSync(join(root, 'dist/mcp-auth.js'), 'utf8');
    const [header] = /^(?:\/\*[^]*?\*\/\n|\/\/.*\n)+/.exec(source) ?? [];
    assert.ok(header, 'the source starts with a comment');
    assert.ok(built.startsWith(header));
    const comments = (text: string): string[] => text.split('\n').filter((line) => /^\s*(\/\/|\*|\/\*)/.test(line));
    assert.ok(comments(built).length > comments(source).length / 2); // those on types go with the types
  });

  it('mcp-auth.d.ts documents every exported function', () => {
    const types = readFileSync(join(root, 'dist/mcp-auth.d.ts'), 'utf8');
    for (const name of exported.filter((name) => /^[a-z]/.test(name))) {
      assert.match(types, new RegExp(String.raw`\*/\nexport declare function ${name}\b`), name);
    }
  });

  it('cli.js makes keys in an empty folder, alone', async () => {
    const cwd = project('alone');
    copyFileSync(join(root, 'dist/cli.js'), join(cwd, 'cli.js'));
    const { code, stdout, stderr } = await run(process.execPath, ['cli.js', 'generate'], { cwd });
    assert.equal(code, 0, stderr);
    assert.equal(
      stdout,
      'Keys generated (JWKS format):\n  Private: .keys/mcp-private.json\n  Public:  .keys/mcp-public.json\n',
    );
    assert.doesNotMatch(stderr, /warning/i);
    assert.deepEqual(readdirSync(join(cwd, '.keys')).sort(), ['mcp-private.json', 'mcp-public.json']);
  });
});

describe('the tarball', () => {
  let tarball = '';
  let cwd = '';
  before(async () => {
    // Without its script, which would rebuild dist/ under the suites that run beside this one.
    const { stdout } = await npm(root, 'pack', '--ignore-scripts', '--json', '--pack-destination', folder);
    tarball = join(folder, `${manifest.name}-${manifest.version}.tgz`);
    assert.ok(existsSync(tarball), stdout);
    cwd = project('installed', { 'package.json': '{ "name": "installed", "version": "1.0.0", "private": true }' });
    await npm(cwd, 'install', '--offline', '--no-audit', '--no-fund', tarball);
  });

  it('holds these files and no other', async () => {
    const { stdout } = await run('tar', ['-tzf', tarball]);
    assert.deepEqual(stdout.trim().split('\n').sort(), [
      'package/LICENSE',
      'package/README.md',
      'package/dist/cli.js',
      'package/dist/mcp-auth.d.ts',
      'package/dist/mcp-auth.js',
      'package/mcp-auth.ts',
      'package/package.json',
    ]);
  });

  it('has nothing that publint would mend', async () => {
    const { code, stdout } = await run(join(root, 'node_modules/.bin/publint'), ['run', tarball, '--strict']);
    assert.equal(code, 0, stdout);
    assert.match(stdout, /All good!/);
  });

  it('has types that agree with its code for every kind of import', async () => {
    // It is an ES module for require() too, which is in every supported Node and which the tool still warns of.
    const args = [tarball, '--no-color', '--ignore-rules', 'cjs-resolves-to-esm'];
    const { code, stdout, stderr } = await run(join(root, 'node_modules/.bin/attw'), args);
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, /No problems found/);
  });

  it('installs without a network and brings no other package', () => {
    const packages = readdirSync(join(cwd, 'node_modules')).filter((name) => !name.startsWith('.'));
    assert.deepEqual(packages, ['mcp-auth-middleware']);
  });

  it('has a bill of materials of one component, with the hash of the tarball', async () => {
    const { components } = JSON.parse((await npm(cwd, 'sbom', '--sbom-format', 'cyclonedx')).stdout);
    assert.deepEqual(
      components.map(({ purl }: { purl: string }) => purl),
      [`pkg:npm/${manifest.name}@${manifest.version}`],
    );
    const sha512 = createHash('sha512').update(readFileSync(tarball)).digest('hex');
    assert.deepEqual(components[0].hashes, [{ alg: 'SHA-512', content: sha512 }]);
  });

  const loaders = {
    import: "import * as library from 'mcp-auth-middleware'; console.log(Object.keys(library).sort().join());",
    require:
      "console.log(Object.keys(require('mcp-auth-middleware')).filter((name) => name !== '__esModule').sort().join());",
  };
  for (const [loader, source] of Object.entries(loaders)) {
    it(`loads with ${loader} and exports exactly the documented names`, async () => {
      const type = loader === 'import' ? 'module' : 'commonjs';
      const { stdout, stderr } = await run(process.execPath, [`--input-type=${type}`, '-e', source], { cwd });
      assert.deepEqual({ stdout, stderr }, { stdout: `${exported.join()}\n`, stderr: '' });
    });
  }

  it('installs the command', async () => {
    const { code, stdout, stderr } = await run(join(cwd, 'node_modules/.bin/mcp-auth-middleware'), ['-V'], { cwd });
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: `${manifest.version}\n`, stderr: '' });
  });
});

describe('a strict TypeScript project', () => {
  const tsconfig = {
    compilerOptions: {
      target: 'ES2023',
      lib: ['ES2023'],
      module: 'NodeNext',
      types: ['node'],
      outDir: 'out',
      rootDir: '.',
      strict: true,
      skipLibCheck: false,
      isolatedModules: true,
      verbatimModuleSyntax: true,
      erasableSyntaxOnly: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      noImplicitOverride: true,
      noImplicitReturns: true,
      noFallthroughCasesInSwitch: true,
      noUnusedLocals: true,
      noUnusedParameters: true,
      allowUnreachableCode: false,
      allowUnusedLabels: false,
    },
    files: ['vendored.ts', 'installed.ts'],
  };
  const commonjs = {
    extends: '../tsconfig.json',
    compilerOptions: { verbatimModuleSyntax: false, noEmit: true },
    files: ['main.cts'],
  };
  const compilers = { typescript59: '5.9', typescript6: '6', typescript: '7' };
  for (const [compiler, version] of Object.entries(compilers)) {
    it(`compiles the vendored file and the package's types with TypeScript ${version}, and serves`, async () => {
      const tsc = join(root, 'node_modules', compiler, 'bin/tsc');
      assert.match((await run(process.execPath, [tsc, '--version'])).stdout, new RegExp(`^Version ${version}\\.`));

      const cwd = project(compiler, {
        'package.json': '{ "private": true, "type": "module" }',
        'tsconfig.json': JSON.stringify(tsconfig),
        'vendored.ts': greeter('./mcp-auth.js'),
        'installed.ts': greeter('mcp-auth-middleware'),
        'commonjs/main.cts':
          "import { getUser, type AuthUser } from 'mcp-auth-middleware';\nexport const user: AuthUser = getUser();\n",
        'commonjs/tsconfig.json': JSON.stringify(commonjs),
      });
      copyFileSync(join(root, 'mcp-auth.ts'), join(cwd, 'mcp-auth.ts'));
      mkdirSync(join(cwd, 'node_modules/@types'), { recursive: true });
      symlinkSync(join(root, 'node_modules/@types/node'), join(cwd, 'node_modules/@types/node'));
      symlinkSync(root, join(cwd, 'node_modules/mcp-auth-middleware'));

      for (const config of ['.', 'commonjs']) {
        const { code, stdout } = await run(process.execPath, [tsc, '-p', config], { cwd });
        assert.equal(code, 0, stdout);
      }
      for (const file of ['vendored.js', 'installed.js']) {
        const { code, stdout, stderr } = await run(process.execPath, [join('out', file)], { cwd });
        assert.deepEqual({ file, code, stdout }, { file, code: 0, stdout: '200 Hello, Ada!\n' }, stderr);
      }
    });
  }
});

describe('unbuilt', () => {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const stripsTypes = major > 22 || (major === 22 && minor >= 18);
  const runtimes: Record<string, [command: string[], options: { skip: string | false }]> = {
    node: [[process.execPath], { skip: stripsTypes ? false : 'Node runs .ts files from 22.18 on' }],
    deno: [['deno', 'run', '--allow-all'], needs('deno')],
    bun: [['bun', 'run'], needs('bun')],
  };
  for (const [runtime, [[program = '', ...args], options]] of Object.entries(runtimes)) {
    it(`cli.ts makes keys and the vendored file serves with ${runtime}`, options, async () => {
      const cwd = project(`unbuilt-${runtime}`, {
        'package.json': '{ "private": true, "type": "module" }',
        'server.ts': greeter('./mcp-auth.ts'),
      });
      for (const file of ['cli.ts', 'mcp-auth.ts']) copyFileSync(join(root, file), join(cwd, file));
      const generate = await run(program, [...args, 'cli.ts', 'generate'], { cwd });
      assert.equal(generate.code, 0, generate.stderr);
      assert.match(generate.stdout, /^Keys generated/);
      assert.deepEqual(readdirSync(join(cwd, '.keys')).sort(), ['mcp-private.json', 'mcp-public.json']);
      const served = await run(program, [...args, 'server.ts'], { cwd });
      assert.deepEqual(
        { code: served.code, stdout: served.stdout },
        { code: 0, stdout: '200 Hello, Ada!\n' },
        served.stderr,
      );
    });
  }
});
