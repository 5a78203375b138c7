// README.md: every block of code is run as its reader would, in a project that has the built package; every table is
// held to what is built.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
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
  const [, name = ''] = /^\/\/ ([\w-]+\.(?:js|ts))\n/.exec(code) ?? [];
  assert.ok(
    name.endsWith(`.${language}`) && !programs.has(name),
    `the first line names the file: ${code.slice(0, 60)}`,
  );
  programs.set(name, code);
}
const kubernetes = readme.split(/^(?=## )/m).find((section) => section.startsWith('## Kubernetes\n')) ?? '';
const shell = blocks
  .filter(({ language, code }) => language === 'sh' && !kubernetes.includes(code))
  .map(({ code }) => code.trimEnd());

/** The rows of the table under a heading, without its head. */
function table(heading: string): string[][] {
  const section = prose.split(/^#+ /m).find((part) => part.startsWith(`${heading}\n`));
  assert.ok(section, `a section "${heading}"`);
  const rows = section
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .slice(2);
  assert.ok(rows.length > 0, `a table in "${heading}"`);
  return rows.map((row) =>
    row
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}
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

/** A project as the README has it after \`npm install\`, with all of its programs. */
function project(name: string): string {
  const cwd = join(folder, name);
  mkdirSync(join(cwd, 'node_modules/.bin'), { recursive: true });
  writeFileSync(join(cwd, 'package.json'), '{ "private": true, "type": "module" }');
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
  const [clone = '', begin = '', ask = '', ...others] = shell;
  it('are these three, and those on Kubernetes, which operator.test.ts runs', () => assert.deepEqual(others, []));

  it('on a fresh clone: are what CI runs', () => {
    assert.equal(clone, 'npm ci && npm start\nnpm ci && npm test');
    assert.match(readFileSync(join(root, '.ci/run'), 'utf8'), /^suite 'Node 20' bash -c 'npm ci && npm test'$/m);
    const workflow = readFileSync(join(root, '.github/workflows/ci.yml'), 'utf8');
    for (const command of ['npm ci', 'npm start', 'npm test'])
      assert.match(workflow, new RegExp(`^ +- run: ${command}$`, 'm'));
  });

  it(
    'in a project: make keys, start the server, are greeted with a token and refused without',
    needs('curl'),
    async (t) => {
      const cwd = project('begin');
      const lines = begin.split('\n');
      const [, ...args] = lines.pop()?.split(' ') ?? [];
      assert.deepEqual(args, ['--env-file=.env', 'server.js']);

      const made = await bash(cwd, lines.join('\n'));
      assert.equal(made.code, 0, made.stderr);
      assert.match(made.stdout, /^Keys generated/);
      const advised = /For \.env:\n +(.+)\nFor \.gitignore:\n +(.+)\n/.exec(made.stderr)?.slice(1);
      assert.deepEqual(
        advised,
        ['.env', '.gitignore'].map((file) => readFileSync(join(cwd, file), 'utf8').trimEnd()),
        'as the command itself says',
      );

      const url = await start(t, cwd, args);
      const [greeted = '', refused = '', ...more] = ask.split('\n');
      assert.deepEqual(more, []);
      const greeting = await bash(cwd, here(greeted, url));
      assert.equal(greeting.stdout, 'Hello, Ada!\n', greeting.stderr);
      const refusal = await bash(cwd, here(refused, url));
      assert.match(refusal.stdout, /^HTTP\/1\.1 401 /);
    },
  );
});

describe('the programs', () => {
  const runs: Record<string, (scope: Scope, cwd: string) => Promise<void>> = {
    'server.js': async (scope, cwd) => {
      const url = await start(scope, cwd, ['server.js'], await saveKeys(cwd));
      assert.deepEqual(await get(url, await bearer({ name: 'Ada' })), [200, 'Hello, Ada!\n']);
      assert.equal((await get(url))[0], 401);
    },

    'mcp-server.js': async (scope, cwd) => {
      const url = await start(scope, cwd, ['mcp-server.js'], await saveKeys(cwd));
      const theOtherSide = join(root, 'build/examples/gateway.js');
      const { stdout, stderr } = await run(process.execPath, [theOtherSide, `${url}/mcp`]);
      assert.equal(stdout, 'Hello, Ada!\n', stderr);
      assert.equal((await get(`${url}/mcp`, await bearer({ sub: 'user-1' })))[0], 403);
    },

    'tool.ts': async (scope, cwd) => {
      const [wrapped] = codeIn(prose).filter((code) => code.startsWith('withAuth(handler, { requiredClaims'));
      assert.ok(wrapped, 'the call under "Claims in a tool"');
      writeFileSync(
        join(cwd, 'main.js'),
        `
        import { createServer } from 'node:http';
        import { withAuth } from 'mcp-auth-middleware';
        import { describeCaller } from './tool.js';
        const handler = (req, res) => res.end(describeCaller());
        createServer(${wrapped}).listen(3000, '127.0.0.1');
      `,
      );
      // With the settings of "Vendoring", the strictest as well.
      const [module, target] = [/"module": "\w+"/, /"target": "\w+"/].map((setting) => setting.exec(prose)?.[0]);
      writeFileSync(
        join(cwd, 'tsconfig.json'),
        `{
          "compilerOptions": {
            ${module}, ${target}, "types": ["node"],
            "strict": true, "exactOptionalPropertyTypes": true, "noUncheckedIndexedAccess": true
          },
          "files": ["tool.ts"]
        }`,
      );
      const compiled = await run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', '.'], { cwd });
      assert.equal(compiled.code, 0, compiled.stdout);

      const url = await start(scope, cwd, ['main.js'], await saveKeys(cwd));
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
    },

    'signed-server.js': async (scope, cwd) => {
      const env = await saveKeys(cwd);
      await makeIssuer(cwd);
      const url = await start(scope, cwd, ['signed-server.js'], env);
      const unsigned = await bearer({ name: 'Ada', aud: 'https://mcp.example/mcp', iss: 'https://idp.example' });
      assert.equal((await get(url, unsigned))[0], 401);
    },

    'issuer.js': async (scope, cwd) => {
      const env = await saveKeys(cwd);
      await makeIssuer(cwd);
      const url = await start(scope, cwd, ['signed-server.js'], env);
      writeFileSync(join(cwd, 'issuer.js'), here(programs.get('issuer.js') ?? '', url));
      const { code, stdout, stderr } = await run(process.execPath, ['issuer.js'], { cwd });
      assert.equal(code, 0, stderr);
      assert.deepEqual(await get(url, { Authorization: `Bearer ${stdout.trim()}` }), [
        200,
        'https://idp.example says that you are Ada\n',
      ]);
    },

    'express-server.js': async (scope, cwd) => {
      const url = await start(scope, cwd, ['express-server.js'], await saveKeys(cwd));
      const [status, body] = await get(`${url}/me`, await bearer({ name: 'Ada' }));
      assert.deepEqual([status, JSON.parse(body).name], [200, 'Ada']);
      assert.equal((await get(`${url}/me`))[0], 401);
      assert.equal((await get(`${url}/.well-known/jwks.json`))[0], 200);
    },

    'fetch-server.js': async (_scope, cwd) => {
      const env = { ...(await saveKeys(cwd)), BEARER: (await bearer({ name: 'Ada' })).Authorization };
      const source = `
        import server from './fetch-server.js';
        for (const headers of [{ Authorization: process.env.BEARER }, {}]) {
          const response = await server.fetch(new Request('http://127.0.0.1/', { headers }));
          console.log(response.status, response.ok ? await response.text() : '');
        }`;
      const { stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', source], { cwd, env });
      assert.equal(stdout, '200 Hello, Ada!\n401 \n', stderr);
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

describe('the text', () => {
  it('names the version that is built', () => {
    const names = codeIn(prose).flatMap((code) => /^npm install \.\/(\S+)$/.exec(code)?.[1] ?? []);
    assert.deepEqual(names, [`${manifest.name}-${manifest.version}.tgz`]);
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

  it('has one place for the figures of the benchmark', () => {
    assert.match(prose, /^## Speed\n[^#]*^<!-- bench -->\n(\|.*\n)*<!-- \/bench -->$/m);
    assert.equal(prose.match(/<!-- \/?bench -->/g)?.length, 2);
  });
});
