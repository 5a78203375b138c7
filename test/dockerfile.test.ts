// examples/Dockerfile: no engine is here to build it, so its steps are taken one by one in folders, and what it would
// run is started. That leaves out the base image: the Node of this run takes its place, and no Debian package is
// installed.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, chownSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync } from 'node:fs';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, it } from 'node:test';
import type { Ignore } from '@balena/dockerignore';
import { Copy, DockerfileParser, Env, From, JSONInstruction } from 'dockerfile-ast';
import { validate } from 'dockerfile-utils';
import { keyPair, root, run, type Scope } from './support/support.js';

const text = readFileSync(join(root, 'examples/Dockerfile'), 'utf8');
const ignored = readFileSync(join(root, 'examples/Dockerfile.dockerignore'), 'utf8');
// Its types promise a default export that it does not have.
const dockerignore: () => Ignore = createRequire(import.meta.url)('@balena/dockerignore');
const isRoot = process.getuid?.() === 0;

// ## The steps

interface Stage {
  name: string;
  base: string;
  /** The folder that stands for the root of its file system. */
  folder: string;
  workdir: string;
  env: Record<string, string>;
  user: string;
  port: string;
  command: string[];
  /** Commands that were not run, because they would change this machine. */
  skipped: string[];
}

/** Builds every stage below a folder, from a context as .dockerignore leaves it. */
async function build(dockerfile: string, ignores: string, context: string, output: string): Promise<Stage[]> {
  const stages: Stage[] = [];
  let stage: Stage | undefined;
  for (const instruction of DockerfileParser.parse(dockerfile).getInstructions()) {
    const words = instruction.getExpandedArguments().map((argument) => argument.getValue());
    const keyword = instruction.getKeyword();
    if (instruction instanceof From) {
      const name = instruction.getBuildStage() ?? `${stages.length}`;
      stage = { ...empty, name, base: instruction.getImage() ?? '', folder: join(output, name), env: {}, skipped: [] };
      stages.push(stage);
      mkdirSync(stage.folder, { mode: 0o755 });
    } else if (keyword === 'ARG' && stage === undefined) {
      continue; // the base image, which nothing here needs
    } else {
      assert.ok(stage, 'instructions follow a FROM');
      if (instruction instanceof Copy) copy(stages, stage, instruction, words, { context, ignores });
      else if (instruction instanceof Env)
        for (const property of instruction.getProperties()) stage.env[property.getName()] = property.getValue() ?? '';
      else if (keyword === 'CMD' && instruction instanceof JSONInstruction)
        stage.command = instruction.getJSONStrings().map((word) => JSON.parse(word.getValue()));
      else if (keyword === 'RUN') await runStep(stage, instruction.getArgumentsContent() ?? '');
      else if (keyword === 'WORKDIR')
        mkdirSync(join(stage.folder, (stage.workdir = words[0] ?? '')), { recursive: true });
      else if (keyword === 'USER') stage.user = words[0] ?? '';
      else if (keyword === 'EXPOSE') stage.port = words[0] ?? '';
      else assert.fail(`a step that this test cannot take: ${keyword}`);
    }
  }
  return stages;
}
const empty = { workdir: '/', user: 'root', port: '', command: [] };

/** Files and folders of a context, as paths below it, without what is ignored and what would take long to walk. */
function filesOf(context: string, ignores: string): string[] {
  const filter = dockerignore().add(ignores).createFilter();
  const large = ['node_modules', '.git', 'build'];
  const walk = (at: string): string[] =>
    readdirSync(join(context, at), { withFileTypes: true }).flatMap((entry) => {
      const path = join(at, entry.name);
      if (large.includes(path)) assert.ok(!filter(path), `${path} is ignored`);
      if (entry.isDirectory()) return large.includes(path) ? [] : walk(path);
      return filter(path) ? [path] : [];
    });
  return walk('');
}

function copy(
  stages: Stage[],
  stage: Stage,
  instruction: Copy,
  words: string[],
  { context, ignores }: { context: string; ignores: string },
): void {
  const to = words.at(-1) ?? '';
  const target = to.startsWith('/') ? join(stage.folder, to) : join(stage.folder, stage.workdir, to);
  const [from] = instruction.getFlags();
  const source = stages.find(({ name }) => name === from?.getValue());
  if (from) assert.ok(from.getName() === 'from' && source && source !== stage, 'copies from an earlier stage');
  const files = source ? [] : filesOf(context, ignores);
  for (const path of words.slice(0, -1)) {
    if (source) cpSync(join(source.folder, path), join(target, basename(path)));
    else if (path === '.') for (const file of files) cpSync(join(context, file), join(target, file));
    else {
      assert.ok(files.includes(path), `${path} is in the context`);
      cpSync(join(context, path), join(target, basename(path)));
    }
  }
}

async function runStep(stage: Stage, command: string): Promise<void> {
  if (/\bapt-get\b/.test(command)) return void stage.skipped.push(command);
  const cwd = join(stage.folder, stage.workdir);
  const env = { ...stage.env, npm_config_prefer_offline: 'true', NODE_TEST_CONTEXT: undefined };
  const { code, stdout, stderr } = await run('/bin/sh', ['-c', command], { cwd, env, timeout: 300_000 });
  assert.equal(code, 0, `${command}\n${stdout}\n${stderr}`);
}

// ## The tests

describe('examples/Dockerfile', () => {
  it('is well-formed', () => {
    assert.deepEqual(validate(text), []);
    assert.notDeepEqual(validate(text.replace('WORKDIR', 'WORKDIRECTORY')), []);
  });

  it('sends no key, no setting and no package of this machine to the engine', () => {
    const filter = dockerignore().add(ignored).createFilter();
    const secrets = ['.env', '.keys/mcp-private.json', 'examples/.keys/mcp-private.json', 'examples/.env', '.npmrc'];
    for (const path of [...secrets, '.git/config', 'node_modules/zod/package.json', 'dist/cli.js'])
      assert.equal(filter(path), false, path);
    assert.equal(filter('mcp-auth.ts'), true);
  });

  it('takes its steps as an engine would: a file that is ignored or missing cannot be copied', async (t) => {
    const rows = [
      ['COPY a .', '*\n!a', undefined],
      ['COPY b .', '*\n!a', /b is in the context/],
      ['COPY c .', '*\n!c', /c is in the context/],
      ['RUN false', '*', /false/],
      ['COPY --from=nobody /a .', '*', /earlier stage/],
    ] as const;
    for (const [step, ignores, refusal] of rows) {
      const [context, output] = [temporaryFolder(t), temporaryFolder(t)];
      for (const name of ['a', 'b']) writeFileSync(join(context, name), name);
      const built = build(`FROM node\nWORKDIR /w\n${step}\n`, ignores, context, output);
      if (refusal) await assert.rejects(built, refusal);
      else assert.ok((await built) && existsSync(join(output, '0/w/a')));
    }
  });
});

function temporaryFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-docker-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  chmodSync(folder, 0o755); // the server runs as another user
  return folder;
}

describe('the images', () => {
  const manifest = (name: string): string => readFileSync(join(root, 'examples', name), 'utf8');

  it('hold a server that greets, and the command, for a user who owns nothing in them', async (t) => {
    const output = temporaryFolder(t);
    const [made, rotate, server, ...others] = await build(text, ignored, root, output);
    assert.ok(made && rotate && server && others.length === 0);
    assert.deepEqual([made.name, rotate.name, server.name], ['build', 'rotate', 'server']);
    assert.deepEqual([made.skipped, server.skipped], [[], []]);
    assert.match(
      rotate.skipped.join(),
      /^apt-get update && apt-get install -y --no-install-recommends kubernetes-client /,
    );

    for (const [stage, file] of [
      [server, 'k8s-deployment.yaml'],
      [rotate, 'k8s-rotate.yaml'],
    ] as const) {
      const users = [...manifest(file).matchAll(/runAs(?:User|Group): ([0-9]+)/g)].map(([, id]) => id);
      assert.deepEqual(stage.user.split(':'), users, `the user of ${file}`);
      assert.deepEqual(stage.base, '${NODE_IMAGE}');
    }
    assert.match(manifest('k8s-deployment.yaml'), new RegExp(`containerPort: ${server.port}\\n`));
    assert.deepEqual(readdirSync(server.folder + server.workdir).sort(), ['package.json', 'server.js']);
    assert.deepEqual(readdirSync(rotate.folder + rotate.workdir).sort(), ['cli.js', 'package.json']);

    const { stdout } = await inImage(rotate);
    assert.match(stdout, /^usage: /);
    const url = await startServer(t, server, output);
    const greeting = await run(process.execPath, [join(root, 'build/examples/gateway.js'), url]);
    assert.equal(greeting.stdout, 'Hello, Ada!\n', greeting.stderr);
  });

  const program = ([name, ...args]: string[]): [string, string[]] => {
    assert.equal(name, 'node');
    return [process.execPath, args];
  };

  function inImage(stage: Stage): ReturnType<typeof run> {
    const [node, args] = program(stage.command);
    return run(node, args, { cwd: join(stage.folder, stage.workdir), env: stage.env });
  }

  /** Starts the image's command in its environment, as its user where this test may become another one. */
  async function startServer(scope: Scope, stage: Stage, folder: string): Promise<string> {
    const [node, args] = program(stage.command);
    const [uid, gid] = stage.user.split(':').map(Number);
    const { privateJwk } = await keyPair();
    const keyFile = join(folder, 'mcp-private.json');
    writeFileSync(keyFile, JSON.stringify({ keys: [privateJwk] }));
    if (isRoot && gid !== undefined) chownSync(keyFile, 0, gid); // as fsGroup leaves it
    chmodSync(keyFile, 0o440);
    assert.equal(statSync(keyFile).mode & 0o777, 0o440);
    const child = spawn(node, args, {
      cwd: join(stage.folder, stage.workdir),
      env: { PATH: process.env.PATH, ...stage.env, HOST: '127.0.0.1', PORT: '0', MCP_KEY_FILE_PATH: keyFile },
      stdio: ['ignore', 'pipe', 'inherit'],
      ...(isRoot ? { uid, gid } : {}),
    });
    scope.after(() => child.kill('SIGKILL'));
    for await (const line of createInterface({ input: child.stdout })) {
      const [url] = /http:\/\/\S+/.exec(line) ?? [];
      if (url) return url;
    }
    throw new Error('the server ended before it listened');
  }
});
