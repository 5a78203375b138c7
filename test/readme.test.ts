// README.md: every block of code is run as its reader would, in a project that has the built package; every table is
// held to what is built.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
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
import { delimiter, join } from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { pathToFileURL } from 'node:url';
import * as library from 'mcp-auth-middleware';
import { keyPair, needs, root, run, type Finished, type Scope } from './support/support.js';

const { encryptToken, JWETokenVerifier, KeyError, withAuthFetch } = library;
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const cli = join(root, 'dist/cli.js');

// ## The document's parts

interface Block {
  language: string;
  code: string;
}
const blocks: Block[] = [...readme.matchAll(/^```(.*)\n([^]*?)^```$/gm)].map(([, language = '', code = '']) => ({
  language,
  code,
}));
const prose = readme.replace(/^```.*\n[^]*?^```$/gm, '');

/** The programs: each says in its first line what its file is called. */
const programs = new Map<string, string>();
for (const { language, code } of blocks.filter(({ language }) => language === 'js' || language === 'ts')) {
  const [, name = ''] = /^\/\/ ([\w-]+\.(?:mjs|ts))(?:: .+)?\n/.exec(code) ?? [];
  assert.ok(
    name.endsWith(language === 'js' ? '.mjs' : '.ts') && !programs.has(name),
    `the first line names the file: ${code.slice(0, 60)}`,
  );
  programs.set(name, code);
}
const kubernetes = readme.split(/^(?=## )/m).find((section) => section.startsWith('## Kubernetes\n')) ?? '';
const shell = blocks
  .filter(({ language, code }) => language === 'sh' && !kubernetes.includes(code))
  .map(({ code }) => code.trimEnd());

const cellsOf = (row: string): string[] =>
  row
    .split('|')
    .slice(1, -1)
    .map((cell) => cell.trim());

/** The rows of each table under a heading, without its head. */
function tables(heading: string): string[][][] {
  const section = prose.split(/^#+ /m).find((part) => part.startsWith(`${heading}\n`));
  assert.ok(section, `a section "${heading}"`);
  const found = [...section.matchAll(/(?:^\|.*\n)+/gm)].map(([rows]) =>
    rows.trimEnd().split('\n').slice(2).map(cellsOf),
  );
  assert.ok(found.length > 0 && found.every((rows) => rows.length > 0), `a table in "${heading}"`);
  return found;
}
const table = (heading: string): string[][] => tables(heading)[0] ?? [];
const codeIn = (markdown = ''): string[] => [...markdown.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);

// ## The reader's project

const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-readme-'));
after(() => rmSync(folder, { recursive: true, force: true }));

// A reader has port 3000; a test takes a free one and says which.
const freePort = join(folder, 'free-port.mjs');
writeFileSync(
  freePort,
  `
import { Server } from 'node:net';
const { listen } = Server.prototype;
Server.prototype.listen = function (port, ...rest) {
  this.once('listening', () => process.send({ asked: port, port: this.address().port }));
  return listen.call(this, 0, ...rest);
};
`,
);

/** A project after `npm install`, with all programs of the README; of CommonJS, as `npm init -y` makes it. */
function project(name: string): string {
  const cwd = join(folder, name);
  mkdirSync(join(cwd, 'node_modules/.bin'), { recursive: true });
  writeFileSync(join(cwd, 'package.json'), '{ "private": true, "type": "commonjs" }');
  symlinkSync(root, join(cwd, 'node_modules/mcp-auth-middleware'));
  symlinkSync(cli, join(cwd, 'node_modules/.bin/mcp-auth-middleware'));
  for (const dependency of ['@modelcontextprotocol', '@types', 'express'])
    symlinkSync(join(root, 'node_modules', dependency), join(cwd, 'node_modules', dependency));
  for (const [file, code] of programs) writeFileSync(join(cwd, file), code);
  return cwd;
}

/** Nothing that npm says to the scripts it runs, and npx stays with what is installed. */
const environment: NodeJS.ProcessEnv = {
  ...Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('npm_') && name !== 'MCP_KEY_FILE_PATH'),
  ),
  npm_config_offline: 'true',
};
const clean = Object.fromEntries(Object.keys(process.env).map((name) => [name, environment[name]]));

/** Runs lines of a shell block; they stop at the first that fails. */
function bash(cwd: string, lines: string, bin?: string): Promise<Finished> {
  const PATH = [bin, process.env.PATH].filter((path) => path !== undefined).join(delimiter);
  return run('bash', ['-euo', 'pipefail', '-c', lines], { cwd, env: { ...clean, npm_config_offline: 'true', PATH } });
}

/** Starts a server of the README and waits until it listens. */
async function start(
  scope: Scope,
  cwd: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<string> {
  const child = spawn(process.execPath, ['--import', pathToFileURL(freePort).href, ...args], {
    cwd,
    env: { ...environment, ...env },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    timeout: 60_000,
    killSignal: 'SIGKILL',
  });
  scope.after(() => child.kill('SIGKILL'));
  const { stderr: problems } = child;
  assert.ok(problems);
  const stderr = text(problems);
  const message = await Promise.race([
    once(child, 'message').then(([value]: unknown[]) => value),
    once(child, 'close'),
  ]);
  if (typeof message !== 'object' || message === null || !('port' in message && 'asked' in message))
    throw new Error(`${args.join(' ')} did not listen: ${await stderr}`);
  assert.equal(message.asked, 3000);
  return `http://127.0.0.1:${message.port}`;
}
const here = (code: string, url: string): string => {
  assert.ok(code.includes('http://127.0.0.1:3000/'), 'talks to the server of the README');
  return code.replaceAll('http://127.0.0.1:3000', url);
};

/** A key file in a project, as `generate` would have left it, but of 2,048 bits. */
async function saveKeys(cwd: string): Promise<{ MCP_KEY_FILE_PATH: string }> {
  const { privateJwk } = await keyPair();
  mkdirSync(join(cwd, '.keys'), { mode: 0o700 });
  writeFileSync(join(cwd, '.keys/mcp-private.json'), JSON.stringify({ keys: [privateJwk] }), { mode: 0o600 });
  return { MCP_KEY_FILE_PATH: '.keys/mcp-private.json' };
}

/** Puts the tarball into a folder, of what is built. */
async function pack(cwd: string): Promise<void> {
  const { code, stderr } = await bash(cwd, `npm pack --ignore-scripts --silent --pack-destination . '${root}'`);
  assert.equal(code, 0, stderr);
}

/** The inspector and the Node it needs come with the runtimes, which `.ci/run` installs. */
const runtimes = join(root, 'test/runtimes/node_modules');
const inspected = (): { skip: string | false } => ({
  skip:
    existsSync(join(runtimes, '@modelcontextprotocol/inspector')) || process.env.CI
      ? false
      : 'npm ci --prefix test/runtimes installs the inspector and the Node it needs',
});

async function bearer(claims: object): Promise<{ Authorization: string }> {
  const { publicJwk } = await keyPair();
  return { Authorization: `Bearer ${await encryptToken(claims, publicJwk)}` };
}

async function get(url: string, headers: Record<string, string> = {}): Promise<[status: number, body: string]> {
  const response = await fetch(url, { headers });
  return [response.status, await response.text()];
}

// ## Tests

describe('the shell blocks', () => {
  const [clone = '', begin = '', ask = '', sdk = '', inspector = '', page = '', ...others] = shell;
  it('are these six, and those on Kubernetes, which operator.test.ts runs', () => assert.deepEqual(others, []));

  it('on a fresh clone: are what CI runs', () => {
    assert.equal(clone, 'npm ci && npm start\nnpm ci && npm test');
    assert.match(readFileSync(join(root, '.ci/run'), 'utf8'), /^suite 'Node 20' bash -c 'npm ci && npm test'$/m);
    const workflow = readFileSync(join(root, '.github/workflows/ci.yml'), 'utf8');
    for (const command of ['npm ci', 'npm start', 'npm test'])
      assert.match(workflow, new RegExp(`^ +- run: ${command}$`, 'm'));
  });

  it('in a new project: install the tarball, make keys, greet who has a token', needs('curl'), async (t) => {
    const cwd = join(folder, 'begin');
    mkdirSync(cwd);
    const made = await bash(cwd, 'npm init -y');
    assert.equal(made.code, 0, made.stderr);
    await pack(cwd);
    writeFileSync(join(cwd, 'server.mjs'), programs.get('server.mjs') ?? '');
    // What is there stays, also where a file does not end in a line break.
    const [variable, ignored] = ['DATABASE_URL=postgres://db', 'node_modules'];
    writeFileSync(join(cwd, '.env'), variable);
    writeFileSync(join(cwd, '.gitignore'), ignored);

    const lines = begin.split('\n');
    const [, ...args] = lines.pop()?.split(' ') ?? [];
    assert.deepEqual(args, ['--env-file=.env', 'server.mjs']);
    const { code, stdout, stderr } = await bash(cwd, lines.join('\n'));
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^Keys generated/m);
    const advised = /For \.env:\n +(.+)\nFor \.gitignore:\n +(.+)\n/.exec(stderr)?.slice(1);
    const linesOf = (file: string): string[] => readFileSync(join(cwd, file), 'utf8').split('\n').filter(Boolean);
    assert.deepEqual(
      [linesOf('.env'), linesOf('.gitignore')],
      [
        [variable, advised?.[0]],
        [ignored, advised?.[1]],
      ],
    );

    const url = await start(t, cwd, args);
    const [greeted = '', refused = '', ...more] = ask.split('\n');
    assert.deepEqual(more, []);
    const greeting = await bash(cwd, here(greeted, url));
    assert.equal(greeting.stdout, 'Hello, Ada!\n', greeting.stderr);
    const refusal = await bash(cwd, here(refused, url));
    assert.match(refusal.stdout, /^HTTP\/1\.1 401 /);
  });

  it('where the package is not installed: run nothing', async () => {
    const cwd = join(folder, 'empty');
    mkdirSync(cwd);
    const [command] = begin.split('\n').filter((line) => line.endsWith(' generate'));
    const { code, stdout } = await bash(cwd, command ?? '');
    assert.notEqual(code, 0);
    assert.equal(stdout, '');
    assert.deepEqual(readdirSync(cwd), []);
    const calls = [...readme.matchAll(/npx (.*?)mcp-auth-middleware/g)].map(([, options]) => options);
    assert.deepEqual(
      [...new Set(calls)],
      ['--no ', '--no -- '],
      'no call fetches a package of that name from elsewhere',
    );
  });

  it('with the MCP SDK: install what the server imports', () => {
    const imported = [...(programs.get('mcp-server.mjs') ?? '').matchAll(/ from '([^:]+?)'/g)].map(([, name]) => name);
    const [install, ...names] = sdk.replace('npm ', '').split(' ');
    assert.equal(install, 'install');
    assert.deepEqual([...names, 'mcp-auth-middleware'].sort(), imported.sort());
    for (const name of names) assert.ok(existsSync(join(root, 'node_modules', name)), name);
  });

  it('with the MCP inspector: call the tool', inspected(), async (t) => {
    const cwd = project('inspector');
    const url = await start(t, cwd, ['mcp-server.mjs'], await saveKeys(cwd));
    const bin = join(runtimes, '@modelcontextprotocol/inspector/clients/launcher/build/index.js');
    const command = here(inspector, url).replace('npx @modelcontextprotocol/inspector', `node ${bin}`);
    const { code, stdout, stderr } = await bash(cwd, command, join(runtimes, 'node24/bin'));
    assert.equal(code, 0, stderr);
    assert.equal(JSON.parse(stdout).content[0].text, 'Hello, Ada!');
  });

  it('with the page: serve it', async (t) => {
    const cwd = project('page');
    for (const room of ['dist', 'examples']) symlinkSync(join(root, room), join(cwd, room));
    const [generate = '', serve = '', ...others] = page.split('\n');
    assert.deepEqual(others, []);
    const made = await bash(cwd, generate);
    assert.equal(made.code, 0, made.stderr);
    const words = serve.split(' ');
    const env = Object.fromEntries(words.slice(0, 2).map((word) => word.split('=')));
    const [program, script, ...more] = words.slice(2);
    assert.deepEqual(
      [program, script, more, Object.keys(env)],
      ['node', 'examples/server.ts', [], ['MCP_KEY_FILE_PATH', 'PAGE']],
    );
    // Node 20 cannot run the TypeScript that the reader has.
    const url = await start(t, cwd, [join(root, 'build/examples/server.js')], env);
    const [status, html] = await get(url);
    assert.deepEqual([status, html], [200, readFileSync(join(root, 'examples/browser.html'), 'utf8')]);
  });
});

describe('the programs', () => {
  const runs: Record<string, (scope: Scope, cwd: string) => Promise<void>> = {
    'server.mjs': async (scope, cwd) => {
      const url = await start(scope, cwd, ['server.mjs'], await saveKeys(cwd));
      assert.deepEqual(await get(url, await bearer({ name: 'Ada' })), [200, 'Hello, Ada!\n']);
      assert.equal((await get(url))[0], 401);
    },

    'mcp-server.mjs': async (scope, cwd) => {
      const url = await start(scope, cwd, ['mcp-server.mjs'], await saveKeys(cwd));
      const theOtherSide = join(root, 'build/examples/gateway.js');
      const { stdout, stderr } = await run(process.execPath, [theOtherSide, `${url}/mcp`]);
      assert.equal(stdout, 'Hello, Ada!\n', stderr);
      assert.equal((await get(`${url}/mcp`, await bearer({ sub: 'user-1' })))[0], 403);
    },

    'tool.ts': async (scope, cwd) => {
      const [wrapped] = codeIn(prose).filter((code) => code.startsWith('withAuth(handler, { requiredClaims'));
      assert.ok(wrapped, 'the call under "Claims in a tool"');
      writeFileSync(
        join(cwd, 'main.mjs'),
        `
        import { createServer } from 'node:http';
        import { withAuth } from 'mcp-auth-middleware';
        import { describeCaller } from './tool.js';
        const handler = (req, res) => res.end(describeCaller());
        createServer(${wrapped}).listen(3000, '127.0.0.1');
      `,
      );
      // With the settings of "Vendoring", the strictest as well.
      const [module, target, types] = [/"module": "\w+"/, /"target": "\w+"/, /"types": \[.*?\]/].map(
        (setting) => setting.exec(prose)?.[0],
      );
      writeFileSync(
        join(cwd, 'tsconfig.json'),
        `{
          "compilerOptions": {
            ${module}, ${target}, ${types},
            "strict": true, "exactOptionalPropertyTypes": true, "noUncheckedIndexedAccess": true
          },
          "files": ["tool.ts"]
        }`,
      );
      const compiled = await run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', '.'], { cwd });
      assert.equal(compiled.code, 0, compiled.stdout);

      const url = await start(scope, cwd, ['main.mjs'], await saveKeys(cwd));
      const claims = { sub: 'user-1', email: 'ada@example.com', scope: 'notes:read notes:write' };
      assert.deepEqual(await get(url, await bearer({ ...claims, team: 'Engines' })), [
        200,
        'ada@example.com of Engines through user-1, encrypted',
      ]);
      assert.deepEqual(await get(url, await bearer(claims)), [
        200,
        'ada@example.com of no team through user-1, encrypted',
      ]);
      for (const missing of ['email', 'scope'])
        assert.equal((await get(url, await bearer({ ...claims, [missing]: undefined })))[0], 403, missing);

      const [tested] = codeIn(prose).filter((code) => code.startsWith('runAs({'));
      assert.ok(tested, 'the call without a request');
      const source = `
        import { runAs } from 'mcp-auth-middleware';
        import { describeCaller } from './tool.js';
        console.log(${tested});`;
      const { stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', source], { cwd });
      assert.equal(stdout, 'ada@example.com of no team through , encrypted\n', stderr);
    },

    'signed-server.mjs': async (scope, cwd) => {
      const env = await saveKeys(cwd);
      await makeIssuer(cwd);
      const url = await start(scope, cwd, ['signed-server.mjs'], env);
      const unsigned = await bearer({ name: 'Ada', aud: 'https://mcp.example/mcp', iss: 'https://idp.example' });
      assert.equal((await get(url, unsigned))[0], 401);
    },

    'issuer.mjs': async (scope, cwd) => {
      const env = await saveKeys(cwd);
      await makeIssuer(cwd);
      const url = await start(scope, cwd, ['signed-server.mjs'], env);
      writeFileSync(join(cwd, 'issuer.mjs'), here(programs.get('issuer.mjs') ?? '', url));
      const { code, stdout, stderr } = await run(process.execPath, ['issuer.mjs'], { cwd });
      assert.equal(code, 0, stderr);
      assert.deepEqual(await get(url, { Authorization: `Bearer ${stdout.trim()}` }), [
        200,
        'https://idp.example says that you are Ada\n',
      ]);
    },

    'express-server.mjs': async (scope, cwd) => {
      const url = await start(scope, cwd, ['express-server.mjs'], await saveKeys(cwd));
      const [status, body] = await get(`${url}/me`, await bearer({ name: 'Ada' }));
      assert.deepEqual([status, JSON.parse(body).name], [200, 'Ada']);
      assert.equal((await get(`${url}/me`))[0], 401);
      assert.equal((await get(`${url}/.well-known/jwks.json`))[0], 200);
    },

    'fetch-server.mjs': async (_scope, cwd) => {
      const env = { ...(await saveKeys(cwd)), BEARER: (await bearer({ name: 'Ada' })).Authorization };
      const source = `
        import server from './fetch-server.mjs';
        for (const headers of [{ Authorization: process.env.BEARER }, {}]) {
          const response = await server.fetch(new Request('http://127.0.0.1/', { headers }));
          console.log(response.status, response.ok ? await response.text() : '');
        }`;
      const { stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', source], { cwd, env });
      assert.equal(stdout, '200 Hello, Ada!\n\n401 \n', stderr);
    },
  };

  /** The prose in front of the blocks says how. */
  async function makeIssuer(cwd: string): Promise<void> {
    const command = codeIn(prose).find((code) => code.endsWith('generate --signing'));
    assert.ok(command);
    const { code, stderr } = await bash(cwd, command);
    assert.equal(code, 0, stderr);
  }

  for (const name of programs.keys()) {
    it(`${name} does what the text around it says`, async (t) => {
      const check = runs[name];
      assert.ok(check, 'nothing runs this block');
      await check(t, project(name));
    });
  }
  it('are all in the README', () => assert.deepEqual(Object.keys(runs), [...programs.keys()]));
});

/** What differs from run to run: key ids by the order in which they come, dates, and how far away they are. */
function timeless(text: string): string {
  const ids: string[] = [];
  return text
    .replace(
      /(?<![\w-])[\w-]{43}(?![\w-])/g,
      (id) => `KEY${(ids.includes(id) ? ids : (ids.push(id), ids)).indexOf(id)}`,
    )
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \((?:now|in .*?|.*? ago)\)/g, 'TIME');
}

describe('the command', () => {
  let usage = '';
  before(async () => {
    usage = (await run(process.execPath, [cli, '--help'])).stdout;
  });

  it('prints the usage text of the README', () => {
    assert.deepEqual(
      blocks.filter(({ language }) => language === 'text').map(({ code }) => code),
      [usage],
    );
  });

  it('has the commands of the table', () => {
    const commands = [...(usage.split('\n\n')[1] ?? '').matchAll(/^ {2}(\w+)/gm)].map(([, name]) => name);
    assert.deepEqual(
      table('The command')
        .map(([name]) => codeIn(name).join())
        .sort(),
      [...new Set(commands)].sort(),
    );
  });

  it('prints the transcripts of the README', async () => {
    const cwd = project('transcripts');
    const bin = join(cwd, 'node_modules/.bin');
    const before =
      'mcp-auth-middleware generate && mcp-auth-middleware token --claim sub=ada --claim name=Ada > token.txt';
    const made = await bash(cwd, before, bin);
    assert.equal(made.code, 0, made.stderr);
    const [transcript = '', ...more] = blocks.filter(({ language }) => language === 'console').map(({ code }) => code);
    assert.deepEqual(more, []);
    const parts = transcript.split(/^(?=\$ )/m).map((part) => part.trimEnd());
    const printed: string[] = [];
    for (const part of parts) {
      const [line = ''] = part.split('\n');
      const { stdout } = await bash(cwd, `{ ${line.replace('$ ', '')}; } 2>&1`, bin);
      printed.push(`${line}\n${stdout.trimEnd()}`);
    }
    assert.equal(timeless(printed.join('\n\n')), timeless(parts.join('\n\n')));
  });
});

describe('the tables of the API', () => {
  it('name every export and no other', () => {
    const names = table('API').flatMap(([cell]) => codeIn(cell).map((code) => code.replace(/\(.*/, '')));
    assert.deepEqual(names.sort(), Object.keys(library).sort());
  });

  /** The options that the library says it has. */
  function accepted(construct: (options: object) => unknown): string[] {
    let options: string[] = [];
    assert.throws(
      () => construct({ unknown: true }),
      (error: unknown) => {
        assert.ok(error instanceof KeyError);
        options = /there are (.*)$/.exec(error.message)?.[1]?.split(', ') ?? [];
        return true;
      },
    );
    return options;
  }
  const options = table('Options').map(([name, value]) => ({ name: codeIn(name).join(), value: codeIn(value).join() }));

  it('list the options of a request handler, those of a verifier first', () => {
    const verifierOptions = accepted((given) => new JWETokenVerifier(given));
    assert.deepEqual(
      options.map(({ name }) => name),
      accepted((given) => library.withAuth(() => {}, given)),
    );
    assert.deepEqual(
      options.slice(0, 12).map(({ name }) => name),
      verifierOptions,
    );
    assert.ok(prose.includes('The first twelve are'));
  });

  it('give defaults that change nothing when they are set', async () => {
    const parse = (value: string): unknown =>
      /^[/a-z]/.test(value) && !/^(true|false)$/.test(value)
        ? value
        : JSON.parse(value.replace('maxEntries', '"maxEntries"'));
    const defaults = Object.fromEntries(
      options
        .filter(({ name, value }) => value !== '' && !['keyFile', 'requireExp'].includes(name))
        .map(({ name, value }) => [name, parse(value)]),
    );
    assert.ok(Object.keys(defaults).length >= 12);

    const seconds = Math.floor(Date.now() / 1000);
    const { privateJwk, publicJwk } = await keyPair();
    const sealed = async (claims: object): Promise<string> => `Bearer ${await encryptToken(claims, publicJwk)}`;
    const ada = await sealed({ sub: 'ada', exp: seconds + 300 });
    const requests: [path: string, init: RequestInit][] = [
      ['/', { headers: { Authorization: ada } }],
      ['/', {}],
      ['/', { headers: { Authorization: await sealed({ iat: seconds - 100, exp: seconds - 29 }) } }],
      ['/', { headers: { Authorization: await sealed({ iat: seconds - 100, exp: seconds - 30 }) } }],
      ['/.well-known/jwks.json', {}],
      ['/.well-known/openid-configuration', {}],
      ['/', { headers: { Authorization: ada, Origin: 'https://app.example' } }],
      ['/', { method: 'OPTIONS', headers: { Origin: 'https://app.example', 'Access-Control-Request-Method': 'POST' } }],
      ['/', { headers: { Authorization: await sealed({ sub: 'eve' }), 'Mcp-Session-Id': 'session-1' } }],
    ];
    const answers = async (given: object): Promise<unknown[]> => {
      const handler = withAuthFetch(
        (request) => new Response(request.method, { headers: { 'Mcp-Session-Id': 'session-1' } }),
        {
          keys: { keys: [privateJwk] },
          resource: 'https://mcp.example/mcp',
          now: () => seconds,
          ...given,
        },
      );
      const all: unknown[] = [];
      for (const [path, init] of requests) {
        const response = await handler(new Request(`https://mcp.example${path}`, init));
        all.push([path, response.status, Object.fromEntries(response.headers), await response.text()]);
      }
      return all;
    };
    const plain = await answers({});
    assert.deepEqual(
      plain.map((answer) => Array.isArray(answer) && answer[1]),
      [200, 401, 200, 401, 200, 401, 403, 403, 404],
    );
    assert.deepEqual(await answers(defaults), plain);

    // What no answer shows: how much is remembered, and how many may wait.
    const source = readFileSync(join(root, 'mcp-auth.ts'), 'utf8');
    for (const { name, value } of options.filter(({ name }) =>
      ['cache', 'maxPending', 'clockTolerance'].includes(name),
    )) {
      assert.ok(source.includes(`${name} = ${value}`), `${name} = ${value}`);
    }
  });
});

it('the table of hosts has the lines that the examples have', () => {
  for (const [host = '', lines = ''] of table('Hosts')) {
    const files = [...host.matchAll(/\]\((examples\/hosts\/[^)]+)\)/g)].map(([, file = '']) => file);
    assert.ok(files.length > 0, host);
    const counts = files.map((file) => readFileSync(join(root, file), 'utf8').trimEnd().split('\n').length);
    const [least, most] = [Math.min(...counts), Math.max(...counts)];
    assert.equal(lines, least === most ? `${least}` : `${least} to ${most}`, host);
  }
});

describe('the text', () => {
  it('names the version that is built', () => {
    const names = [...readme.matchAll(/[\w.-]+\.tgz/g)].map(([name]) => name);
    assert.deepEqual([...new Set(names)], [`${manifest.name}-${manifest.version}.tgz`]);
  });

  it('lists its sections', () => {
    const headings = [...prose.matchAll(/^## (.+)$/gm)].map(([, heading = '']) => heading);
    const listed = [...prose.matchAll(/\[([^\]]+)\]\(#[^)]+\)/g)].map(([, name]) => name);
    assert.deepEqual(
      headings.filter((heading) => heading !== 'Contents' && !listed.includes(heading)),
      [],
    );
  });

  it('names the sections of the file, in its order', () => {
    const source = readFileSync(join(root, 'mcp-auth.ts'), 'utf8');
    const sections = [...source.matchAll(/^\/\/ ## (.+)\n\/\/ -+$/gm)].map(([, name = '']) => name);
    const named = table('The file').flatMap(([cell = '']) => {
      const [, surface = '', names = cell] = /^\*\*(Audit surface: )(.+)\*\*$/.exec(cell) ?? [];
      return names.split(', ').map((name) => surface + name);
    });
    assert.deepEqual(named, sections);
  });

  it('names every event', () => {
    const source = readFileSync(join(root, 'mcp-auth.ts'), 'utf8');
    const [, union = ''] = /interface AuthEvent \{\n  readonly type:\n([^;]+);/.exec(source) ?? [];
    const types = [...union.matchAll(/'([\w.]+)'/g)].map(([, type]) => type);
    assert.ok(types.length > 0);
    assert.deepEqual(
      table('Observability').flatMap(([cell]) => codeIn(cell)),
      types,
    );
  });

  it('repeats what is run elsewhere: the producer in Python and the matrix of producers', () => {
    const [python = '', ...more] = blocks.filter(({ language }) => language === 'python').map(({ code }) => code);
    assert.deepEqual(more, []);
    let at = 0;
    const program = readFileSync(join(root, 'examples/producers/producer.py'), 'utf8').split('\n');
    for (const line of python.trimEnd().split('\n')) {
      at = program.indexOf(line, at);
      assert.notEqual(at, -1, line);
    }
    const matrix = readFileSync(join(root, 'examples/producers/README.md'), 'utf8').split('\n');
    for (const [name = '', ...cells] of table('Producers')) {
      const row = cellsOf(matrix.find((line) => line.startsWith(`| ${name} | accepted `)) ?? '');
      assert.deepEqual(cells, [row[1], row[2], row[4]], name);
    }
  });

  it('draws the way of a token', () => {
    const [diagram = '', ...more] = blocks.filter(({ language }) => language === 'mermaid').map(({ code }) => code);
    assert.deepEqual(more, []);
    assert.match(diagram, /^sequenceDiagram\n/);
    const participants = [...diagram.matchAll(/participant (\w) as/g)].map(([, name = '']) => name);
    for (const [, from = '', to = ''] of diagram.matchAll(/(\w)--?>>(\w):/g))
      assert.ok(participants.includes(from) && participants.includes(to), `${from} to ${to}`);
  });

  it('has a test or a look for every kind of block', () => {
    assert.deepEqual([...new Set(blocks.map(({ language }) => language))].sort(), [
      'console',
      'js',
      'mermaid',
      'python',
      'sh',
      'text',
      'ts',
    ]);
  });

  it('of test/README.md names every suite and helper', () => {
    const rooms = readFileSync(join(root, 'test/README.md'), 'utf8');
    const named = [...rooms.matchAll(/^\| (`.+?`) \|/gm)].flatMap(([, cell]) => codeIn(cell)).sort();
    const files = ['', 'support', 'properties', 'types'].flatMap((room) =>
      readdirSync(join(root, 'test', room)).filter((file) => /\.(ts|yml)$/.test(file) || file === 'producers'),
    );
    assert.deepEqual(named, files.map((file) => (file === 'producers' ? 'producers/' : file)).sort());
  });

  it('links to files and headings that exist', () => {
    const targets = [...prose.matchAll(/\]\(([^)]+)\)/g)].map(([, target = '']) => target);
    const anchors = [...prose.matchAll(/^#+ (.+)$/gm)].map(
      ([, heading = '']) =>
        `#${heading
          .toLowerCase()
          .replace(/[^\w -]/g, '')
          .replaceAll(' ', '-')}`,
    );
    assert.ok(targets.length >= 10);
    const dead = targets.filter(
      (target) =>
        !(target.startsWith('#') ? anchors.includes(target) : /^https:/.test(target) || existsSync(join(root, target))),
    );
    assert.deepEqual(dead, []);
  });

  it('shows eight rows of the whole bench', () => {
    const marked = (text: string): string[] => {
      const [, rows = '', ...more] = text.split(/^<!-- \/?bench -->\n/m);
      assert.equal(more.length, 1, 'one pair of marks');
      assert.match(rows, /^(\|.*\n)+$/);
      return rows.trimEnd().split('\n');
    };
    const shown = marked(readme);
    const all = marked(readFileSync(join(root, '.github/BENCH.md'), 'utf8'));
    assert.deepEqual(
      shown.filter((row) => !all.includes(row)),
      [],
      'of the same run',
    );
    assert.equal(shown.length, 2 + 8);
    assert.match(readFileSync(join(root, '.github/bench.svg'), 'utf8'), /^<svg (?![^]*NO MEASUREMENT)/);
  });
});
