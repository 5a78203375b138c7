// The README's sections on Kubernetes: each block is run as written, by the real kubectl, against a stand-in for its server.
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { encryptToken, JWETokenVerifier } from 'mcp-auth-middleware';
import { parse, parseAllDocuments } from 'yaml';
import { startCluster, type Access, type Cluster } from './support/cluster.js';
import { cli } from './support/command.js';
import { keyPair, needs, root, run, type Finished, type Scope } from './support/support.js';

// ## The blocks

const readme = readFileSync(join(root, 'README.md'), 'utf8');

/** The shell blocks between a heading and the next one. */
function blocksOf(heading: string): string[] {
  const [, section] = readme.split(`\n${heading}\n`);
  assert.ok(section !== undefined, `a section "${heading}"`);
  const [text = ''] = section.split(/^#+ /m);
  return [...text.matchAll(/^```sh\n([^]*?)^```$/gm)].map(([, code = '']) => code);
}
const [deploy = '', ...moreDeployment] = blocksOf('## Kubernetes');
const [rotate = '', revoke = '', move = '', explain = '', ...moreOneLiners] = blocksOf("### The operator's one-liners");

// ## The operator's machine and the cluster

const SECRET = 'mcp-server/secrets/mcp-server-keys';

/** A folder with what the blocks name: the vendored command and the examples. */
function workFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-operator-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  cpSync(cli, join(folder, 'cli.js'));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  symlinkSync(join(root, 'examples'), join(folder, 'examples'));
  return folder;
}

/** Runs a block as somebody pastes it into bash: lines go on after an error. */
function paste(cwd: string, cluster: Cluster, block: string): Promise<Finished> {
  return run('bash', ['-c', block], { cwd, env: { ...cluster.env, MCP_KEY_FILE_PATH: undefined } });
}

interface Key {
  kid: string;
  nbf?: number;
  exp?: number;
}
const keysIn = (cluster: Cluster): Key[] => {
  const { mcp_jwks: data = '' } = cluster.objects.get(SECRET)?.data ?? {};
  return JSON.parse(Buffer.from(data, 'base64').toString()).keys;
};
const summary = ({ verb, resource, name }: Access): string => `${verb} ${resource} ${name}`;
const now = (): number => Math.floor(Date.now() / 1000);

/** Puts a key set into the cluster as `k8s` and kubectl would have, and says what is stored. */
function putKeys(cluster: Cluster, keys: object[]): string {
  const data = { mcp_jwks: Buffer.from(JSON.stringify({ keys })).toString('base64') };
  const metadata = { name: 'mcp-server-keys', namespace: 'mcp-server', resourceVersion: '7' };
  cluster.objects.set(SECRET, { apiVersion: 'v1', kind: 'Secret', metadata, type: 'Opaque', data });
  return JSON.stringify(cluster.objects.get(SECRET));
}

/** What must be true of every write: by the same field manager, by server-side apply, nothing forced, no annotation. */
function assertApplied(accesses: Access[]): void {
  for (const { query, contentType, body } of accesses.filter(({ verb }) => verb !== 'get')) {
    assert.equal(contentType, 'application/apply-patch+yaml');
    assert.deepEqual([query.fieldManager, query.force], ['kubectl', 'false']);
    assert.doesNotMatch(body, /annotations/);
  }
}

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
    assertApplied(cluster.accesses);
    assert.deepEqual(readdirSync(cwd).sort(), ['cli.js', 'examples', 'package.json']);

    const manifest = readFileSync(join(root, 'examples/k8s-deployment.yaml'), 'utf8');
    const kinds = parseAllDocuments(manifest, { version: '1.1' }).map((document) => document.toJS().kind);
    const applied = cluster.accesses.map(({ body }) => parse(body).kind);
    assert.deepEqual(applied, [...kinds, 'Secret']);

    const verifier = new JWETokenVerifier({ keys: { keys: keysIn(cluster) } });
    const token = await encryptToken({ name: 'Ada' }, verifier.getJwks());
    assert.equal((await verifier.verifyToken(token)).name, 'Ada');
  });
});
