// The README's section on Kubernetes and the job that rotates: each block is run as written, by the real kubectl and
// the built command, against a stand-in for the API server that records what it is sent.
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { CronJob } from 'kubernetes-models/batch/v1';
import { Role } from 'kubernetes-models/rbac.authorization.k8s.io/v1';
import { compactEncrypt, encryptToken, JWETokenVerifier, type JwkSet } from 'mcp-auth-middleware';
import { parse, parseAllDocuments } from 'yaml';
import { startCluster, type Access, type Cluster } from './support/cluster.js';
import { cli } from './support/command.js';
import { keyPair, needs, outcome, root, run, type Finished, type Scope } from './support/support.js';

// ## The blocks

const readme = readFileSync(join(root, 'README.md'), 'utf8');

/** The shell blocks between a heading and the next one. */
function blocksOf(heading: string): string[] {
  const [, section] = readme.split(`\n${heading}\n`);
  assert.ok(section !== undefined, `a section "${heading}"`);
  const [text = ''] = section.split(/^#+ .*$/m);
  return [...text.matchAll(/^```sh\n([^]*?)^```$/gm)].map(([, code = '']) => code);
}
const [deploy = '', ...moreDeployment] = blocksOf('## Kubernetes');
const [rotate = '', revoke = '', move = '', explain = '', ...moreOneLiners] = blocksOf("### The operator's one-liners");

/** The documents of a manifest, and the one of a kind. */
const documents = (file: string): unknown[] =>
  parseAllDocuments(readFileSync(join(root, 'examples', file), 'utf8'), { version: '1.1' }).map((one) => one.toJS());
const kindsOf = (file: string): unknown[] => documents(file).map((one) => Object(one).kind);
const job = documents('k8s-rotate.yaml').find(CronJob.is)?.spec?.jobTemplate.spec?.template.spec?.containers[0];
const rules = documents('k8s-rotate.yaml').find(Role.is)?.rules ?? [];

// ## The operator's machine and the cluster

const SECRET = 'mcp-server/secrets/mcp-server-keys';

/** A folder with what the blocks name, as a clone has it, and with the command where the job has it. */
function workFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-operator-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  for (const name of ['cli.js', 'dist/cli.js']) cpSync(cli, join(folder, name));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  symlinkSync(join(root, 'examples'), join(folder, 'examples'));
  return folder;
}

/** Runs a block as somebody pastes it: a line that fails does not end the shell. */
function paste(cwd: string, cluster: Cluster, block: string): Promise<Finished> {
  return run('bash', ['-c', block], { cwd, env: { ...cluster.env, MCP_KEY_FILE_PATH: undefined } });
}

/** Runs the job's container as the kubelet would, with no folder that it could write to. */
function runJob(cwd: string, cluster: Cluster): Promise<Finished> {
  const [program = '', ...args] = [...(job?.command ?? []), ...(job?.args ?? [])];
  const env = { ...cluster.env, HOME: '/proc', MCP_KEY_FILE_PATH: undefined };
  return run(program, args, { cwd, env });
}

const stored = (cluster: Cluster): string => JSON.stringify(cluster.objects.get(SECRET));
function keysIn(cluster: Cluster): JwkSet {
  const { mcp_jwks: data = '' } = cluster.objects.get(SECRET)?.data ?? {};
  return JSON.parse(Buffer.from(data, 'base64').toString());
}

/** Puts a text into the cluster as `k8s` and kubectl would have put a key set there. */
function put(cluster: Cluster, text: string): void {
  const metadata = { name: 'mcp-server-keys', namespace: 'mcp-server', resourceVersion: '7' };
  const data = { mcp_jwks: Buffer.from(text).toString('base64') };
  cluster.objects.set(SECRET, { apiVersion: 'v1', kind: 'Secret', metadata, type: 'Opaque', data });
}
const set = (keys: object[]): string => JSON.stringify({ keys });

/** A cluster with one key in its Secret, a folder to work in, and a token for that key. */
async function begin(scope: Scope): Promise<{ cwd: string; cluster: Cluster; kid: string; token: string }> {
  const { privateJwk, publicJwk } = await keyPair();
  const cluster = await startCluster(scope);
  put(cluster, set([privateJwk]));
  const token = await encryptToken({ name: 'Ada' }, publicJwk);
  return { cwd: workFolder(scope), cluster, kid: privateJwk.kid ?? '', token };
}

/** A server that has the stored keys, at a moment that is so many seconds from now. */
const serverAt = (cluster: Cluster, offset = 0): JWETokenVerifier =>
  new JWETokenVerifier({ keys: keysIn(cluster), now: () => Date.now() / 1000 + offset, clockTolerance: 0 });
const published = (cluster: Cluster, offset = 0): string | undefined =>
  serverAt(cluster, offset).getJwks().keys[0]?.kid;

/** What must hold of every write: a server-side apply by kubectl's own field manager, nothing forced, no annotation. */
function assertApplied(accesses: Access[]): void {
  for (const { verb, query, contentType, body } of accesses.filter(({ verb }) => verb !== 'get')) {
    assert.deepEqual([verb, contentType], ['patch', 'application/apply-patch+yaml']);
    assert.deepEqual([query.fieldManager, query.force], ['kubectl', 'false']);
    assert.doesNotMatch(body, /annotations/);
  }
}
const summary = ({ verb, resource, name }: Access): string => `${verb} ${resource} ${name}`;
const GET = 'get secrets mcp-server-keys';
const PATCH = 'patch secrets mcp-server-keys';

const near = (value: number | undefined, expected: number): void =>
  assert.ok(Math.abs((value ?? 0) - expected) < 60, `${value} is within a minute of ${expected}`);
const now = (): number => Math.floor(Date.now() / 1000);

// ## The tests

describe('the README', () => {
  it('has these blocks, and each is run below', () => {
    assert.deepEqual([...moreDeployment, ...moreOneLiners], []);
    for (const block of [deploy, rotate, revoke, move, explain]) assert.notEqual(block, '');
  });
});

describe('first deployment', needs('kubectl'), () => {
  it('applies the manifest and a Secret whose key is nowhere else', async (t) => {
    const [cwd, cluster] = [workFolder(t), await startCluster(t)];
    const { code, stdout, stderr } = await paste(cwd, cluster, deploy);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^deployment\.apps\/mcp-server serverside-applied$/m);
    assert.match(stdout, /^secret\/mcp-server-keys serverside-applied$/m);
    assert.doesNotMatch(stdout + stderr, /[\w+/=-]{100}/, 'no key');
    assertApplied(cluster.accesses);
    assert.deepEqual(readdirSync(cwd).sort(), ['cli.js', 'dist', 'examples', 'package.json']);
    const applied = cluster.accesses.map(({ body }) => parse(body).kind);
    assert.deepEqual(applied, [...kindsOf('k8s-deployment.yaml'), 'Secret']);

    const server = serverAt(cluster);
    assert.equal((await server.verifyToken(await encryptToken({ name: 'Ada' }, server.getJwks()))).name, 'Ada');
  });
});

describe('rotation', needs('kubectl'), () => {
  it('adds a key that is published after the overlap, and lets the old one expire after the grace', async (t) => {
    const { cwd, cluster, kid, token } = await begin(t);
    const { code, stdout, stderr } = await paste(cwd, cluster, rotate);
    assert.deepEqual([code, stdout], [0, 'secret/mcp-server-keys serverside-applied\n'], stderr);
    assert.deepEqual(cluster.accesses.map(summary), [GET, PATCH]);
    assertApplied(cluster.accesses);
    assert.deepEqual(readdirSync(cwd).sort(), ['cli.js', 'dist', 'examples', 'package.json']);

    const { keys } = keysIn(cluster);
    const old = keys.find((key) => key.kid === kid);
    const [added, ...others] = keys.filter((key) => key !== old);
    assert.ok(old && added && others.length === 0);
    near(added.nbf, now() + 600);
    near(old.exp, now() + 600 + 86_400);
    assert.equal(added.exp, undefined);
    assert.deepEqual([published(cluster), published(cluster, 660)], [kid, added.kid]);

    // A token made with either key, before or after the change, is good for a server that has the new Secret.
    const next = await encryptToken({ name: 'Ada' }, serverAt(cluster, 660).getJwks(), { expiresIn: null });
    for (const [offset, ...tokens] of [[0, token, next] as const, [660, token, next] as const, [90_000, next] as const])
      for (const one of tokens) assert.equal(await outcome(serverAt(cluster, offset).verifyToken(one)), 'accepted');
  });

  it('can be repeated until there are four keys; a fifth is refused and nothing is written', async (t) => {
    const { cwd, cluster } = await begin(t);
    for (const count of [2, 3, 4]) {
      assert.equal((await paste(cwd, cluster, rotate)).code, 0);
      assert.equal(keysIn(cluster).keys.length, count);
    }
    const before = stored(cluster);
    const { code, stdout, stderr } = await paste(cwd, cluster, rotate);
    assert.notEqual(code, 0);
    assert.equal(stdout, '');
    assert.match(stderr, /^error: .*(four|4|fifth)/m);
    assert.equal(stored(cluster), before);
  });
});

/** What can go wrong on the way, and what kubectl or the command then says. */
const accidents: [what: string, prepare: (cluster: Cluster, cwd: string) => void, says: RegExp][] = [
  ['there is no such Secret', (cluster) => cluster.objects.delete(SECRET), /not found/],
  ['the Secret is empty', (cluster) => put(cluster, ''), /^error: (?!no objects)/m],
  ['the Secret is no JSON', (cluster) => put(cluster, '{"keys": [{'), /^error: (?!no objects)/m],
  ['the Secret is no key set', (cluster) => put(cluster, '{"kty": []}'), /^error: (?!no objects)/m],
  ['the Secret has no private key', (cluster) => put(cluster, set([publicJwk])), /^error: (?!no objects)/m],
  [
    'the Secret has a spoilt key',
    (cluster) => put(cluster, set([{ ...privateJwk, d: 'AQAB' }])),
    /^error: (?!no objects)/m,
  ],
  ['nobody may read it', (cluster) => (cluster.allows = ({ verb }) => verb !== 'get'), /forbidden/],
  ['nobody may write it', (cluster) => (cluster.allows = ({ verb }) => verb === 'get'), /forbidden/],
  ['another manager owns the key', (cluster) => (cluster.owner = 'kubectl-create'), /conflict/i],
  [
    'the command is not there',
    (_, cwd) => ['cli.js', 'dist/cli.js'].forEach((name) => rmSync(join(cwd, name))),
    /Cannot find module/,
  ],
];
const { privateJwk, publicJwk } = await keyPair();

describe('an error in the middle leaves the Secret as it was', { ...needs('kubectl'), concurrency: 2 }, () => {
  const ways: [name: string, go: (cwd: string, cluster: Cluster) => Promise<Finished>][] = [
    ['rotation', (cwd, cluster) => paste(cwd, cluster, rotate)],
    ['rotation without pipefail', (cwd, cluster) => paste(cwd, cluster, rotate.replace('set -o pipefail\n', ''))],
    ['revocation', (cwd, cluster) => paste(cwd, cluster, revoke)],
    ['the job', runJob],
  ];
  for (const [way, go] of ways)
    for (const [what, prepare, says] of accidents)
      it(`${way}: ${what}`, async (t) => {
        const { cwd, cluster } = await begin(t);
        prepare(cluster, cwd);
        const before = stored(cluster);
        const { code, stdout, stderr } = await go(cwd, cluster);
        assert.notEqual(code, 0);
        assert.equal(stdout, '', 'nothing was applied, and nothing was restarted');
        assert.match(stderr, says);
        assert.equal(stored(cluster), before);
      });

  it('for pipefail is in each block that changes a key', () => {
    for (const block of [rotate, revoke]) assert.ok(block.startsWith('set -o pipefail\n'));
  });
});

describe('revocation', needs('kubectl'), () => {
  it('leaves nothing but a new key, at once, and restarts the pods', async (t) => {
    const { cwd, cluster, kid, token } = await begin(t);
    cluster.objects.set('mcp-server/deployments/mcp-server', {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { name: 'mcp-server' },
      spec: { template: { metadata: {} } },
    });
    const { code, stdout, stderr } = await paste(cwd, cluster, revoke);
    const lines = 'secret/mcp-server-keys serverside-applied\ndeployment.apps/mcp-server restarted\n';
    assert.deepEqual([code, stdout], [0, lines], stderr);
    const [restart, ...rest] = cluster.accesses.slice(2).reverse();
    assert.equal(restart && summary(restart), 'patch deployments mcp-server');
    assert.match(restart?.body ?? '', /kubectl\.kubernetes\.io\/restartedAt/);
    assert.ok(rest.every(({ verb }) => verb === 'get'));
    assertApplied(cluster.accesses.slice(0, 2));

    const alive = keysIn(cluster).keys.filter(({ exp }) => exp === undefined || exp > now());
    assert.equal(alive.length, 1);
    assert.notEqual(alive[0]?.kid, kid);
    assert.equal(published(cluster), alive[0]?.kid);
    assert.notEqual(await outcome(serverAt(cluster).verifyToken(token)), 'accepted');
  });
});

describe('coming from the Python package', needs('kubectl'), () => {
  it('stores the key file as it is, and its tokens are good', async (t) => {
    const [cwd, cluster] = [workFolder(t), await startCluster(t)];
    const { privateJwk: made, publicJwk: recipient } = await keyPair('python', 'RSA-OAEP');
    const { kid: _kid, ...key } = made;
    writeFileSync(join(cwd, 'mcp-private.json'), JSON.stringify({ keys: [key] }), { mode: 0o600 });
    const { code, stdout, stderr } = await paste(cwd, cluster, move);
    assert.deepEqual([code, stdout], [0, 'secret/mcp-server-keys serverside-applied\n'], stderr);
    assertApplied(cluster.accesses);
    assert.deepEqual(keysIn(cluster), { keys: [key] });

    const claims = { data: { name: 'Ada' }, iat: now(), exp: now() + 60 };
    const token = compactEncrypt(Buffer.from(JSON.stringify(claims)), recipient);
    const verifier = new JWETokenVerifier({ keys: keysIn(cluster), claimsMember: 'data' });
    assert.equal((await verifier.verifyToken(token)).name, 'Ada');
  });
});

describe('why was my token refused?', needs('kubectl'), () => {
  const rows: [what: string, claims: object, key: string, code: number, says: RegExp][] = [
    ['a good one is not', { name: 'Ada' }, 'server', 0, /accept/i],
    ['it has expired', { name: 'Ada', iat: 1_000_000_000, exp: 1_000_000_300 }, 'server', 1, /expired/i],
    ['it is for another key', { name: 'Ada' }, 'another', 1, /kid/i],
  ];
  for (const [what, claims, key, expected, says] of rows)
    it(what, async (t) => {
      const { cwd, cluster } = await begin(t);
      const { publicJwk: recipient } = await keyPair(key);
      writeFileSync(join(cwd, 'token.txt'), await encryptToken(claims, recipient));
      const { code, stdout, stderr } = await paste(cwd, cluster, explain);
      assert.equal(code, expected, stdout + stderr);
      assert.match(stdout, says);
      assert.doesNotMatch(stdout + stderr, /Ada/, 'no claim values');
      assert.deepEqual(cluster.accesses.map(summary), [GET]);
    });
});

describe('the job of k8s-rotate.yaml', needs('kubectl'), () => {
  const allowing =
    (verbs: readonly string[]) =>
    ({ verb, resource, namespace, name }: Access): boolean =>
      namespace === 'mcp-server' &&
      rules.some(
        ({ resources, resourceNames }) =>
          verbs.includes(verb) && resources?.includes(resource) && resourceNames?.includes(name),
      );
  const verbs = rules.flatMap((rule) => rule.verbs);

  it('is taken by the API server with all that belongs to it', async (t) => {
    const [cwd, cluster] = [workFolder(t), await startCluster(t)];
    const command = 'kubectl apply --server-side -f examples/k8s-rotate.yaml';
    assert.equal((await paste(cwd, cluster, command)).code, 0);
    assert.deepEqual(
      cluster.accesses.map(({ body }) => parse(body).kind),
      kindsOf('k8s-rotate.yaml'),
    );
  });

  it('rotates with what its Role allows, and without a folder that it could write to', async (t) => {
    const { cwd, cluster, kid } = await begin(t);
    cluster.allows = allowing(verbs);
    const { code, stdout, stderr } = await runJob(cwd, cluster);
    assert.deepEqual([code, stdout], [0, 'secret/mcp-server-keys serverside-applied\n'], stderr);
    assert.deepEqual(cluster.accesses.map(summary), [GET, GET, PATCH]);
    assertApplied(cluster.accesses);
    assert.equal(keysIn(cluster).keys.length, 2);
    assert.deepEqual([published(cluster), published(cluster, 660) === kid], [kid, false]);
    assert.doesNotMatch(stderr, /[\w+/=-]{100}/, 'no key in the log');
  });

  for (const missing of ['get', 'patch'])
    it(`needs the verb ${missing}`, async (t) => {
      const { cwd, cluster } = await begin(t);
      cluster.allows = allowing(verbs.filter((verb) => verb !== missing));
      const before = stored(cluster);
      assert.match((await runJob(cwd, cluster)).stderr, /forbidden/);
      assert.equal(stored(cluster), before);
    });

  it('loses against somebody who changes the Secret meanwhile: a revocation is not undone', async (t) => {
    const { cwd, cluster } = await begin(t);
    const { privateJwk: revoked } = await keyPair('another');
    let reads = 0;
    cluster.afterRead = () => {
      if ((reads += 1) !== 2) return;
      put(cluster, set([revoked]));
      Object(cluster.objects.get(SECRET)).metadata.resourceVersion = '8';
    };
    const { code, stderr } = await runJob(cwd, cluster);
    assert.notEqual(code, 0);
    assert.match(stderr, /modified/);
    assert.deepEqual(keysIn(cluster), { keys: [revoked] });
  });

  it('stops with an error before a fifth key', async (t) => {
    const { cwd, cluster } = await begin(t);
    for (const _ of [2, 3, 4]) assert.equal((await runJob(cwd, cluster)).code, 0);
    const before = stored(cluster);
    const { code, stdout, stderr } = await runJob(cwd, cluster);
    assert.notEqual(code, 0);
    assert.equal(stdout, '');
    assert.match(stderr, /^error: .*(four|4|fifth)/m);
    assert.equal(stored(cluster), before);
  });
});
