// What kubectl needs of an API server: discovery, objects under their paths, and a record of every request. It is no
// cluster: it runs nothing, and of server-side apply it knows that an object is replaced unless the resourceVersion is
// an old one or another manager owns it.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { parse } from 'yaml';
import { serve, type Scope } from './support.js';

/** The kinds it knows: group and version, kind, its name in paths, and whether that is below a namespace. */
const KINDS: readonly (readonly [groupVersion: string, kind: string, plural: string, namespaced: boolean])[] = [
  ['v1', 'Namespace', 'namespaces', false],
  ['v1', 'Secret', 'secrets', true],
  ['v1', 'Service', 'services', true],
  ['v1', 'ServiceAccount', 'serviceaccounts', true],
  ['apps/v1', 'Deployment', 'deployments', true],
  ['autoscaling/v2', 'HorizontalPodAutoscaler', 'horizontalpodautoscalers', true],
  ['batch/v1', 'CronJob', 'cronjobs', true],
  ['networking.k8s.io/v1', 'NetworkPolicy', 'networkpolicies', true],
  ['policy/v1', 'PodDisruptionBudget', 'poddisruptionbudgets', true],
  ['rbac.authorization.k8s.io/v1', 'Role', 'roles', true],
  ['rbac.authorization.k8s.io/v1', 'RoleBinding', 'rolebindings', true],
];
const groups = [...new Set(KINDS.map(([groupVersion]) => groupVersion))].filter((name) => name.includes('/'));

/** A request for an object, as RBAC sees it. Discovery is open to everybody in a cluster and is not recorded. */
export interface Access {
  verb: string;
  resource: string;
  namespace: string | undefined;
  name: string;
  query: Record<string, string>;
  contentType: string | undefined;
  body: string;
}

export interface StoredObject {
  metadata: { name: string; resourceVersion?: string };
  data?: Record<string, string>;
  [member: string]: unknown;
}

export interface Cluster {
  /** For kubectl: where the server is, and a home where it may keep what it discovers. */
  env: { KUBECONFIG: string; HOME: string };
  /** Every request for an object since the start. */
  accesses: Access[];
  /** Objects by `namespace/resource/name`, or `resource/name`. */
  objects: Map<string, StoredObject>;
  /** Whether a request is allowed, as a Role would say; everything is at first. */
  allows: (access: Access) => boolean;
  /** Another field manager that owns what is stored, so that applying it is a conflict. */
  owner?: string;
  /** Is called after each read, so that a test can change what was read. */
  afterRead: () => void;
}

/** Starts one on a free port; it ends with the scope. */
export async function startCluster(scope: Scope): Promise<Cluster> {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-cluster-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  const cluster: Cluster = {
    env: { KUBECONFIG: join(folder, 'config'), HOME: folder },
    accesses: [],
    objects: new Map(),
    allows: () => true,
    afterRead: () => {},
  };
  const { url } = await serve(scope, (req, res) => {
    void answer(cluster, req, res).catch((error: unknown) => res.destroy(error instanceof Error ? error : undefined));
  });
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [{ name: 'test', cluster: { server: url } }],
    users: [{ name: 'test', user: {} }],
    contexts: [{ name: 'test', context: { cluster: 'test', user: 'test' } }],
    'current-context': 'test',
  };
  writeFileSync(cluster.env.KUBECONFIG, JSON.stringify(config), { mode: 0o600 });
  return cluster;
}

async function answer(cluster: Cluster, req: IncomingMessage, res: ServerResponse): Promise<void> {
  const url = new URL(req.url ?? '/', 'http://cluster');
  const body = await text(req);
  const send = (status: number, json: object): void => {
    res.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(json));
  };
  const document = discovery(url.pathname);
  if (document) return send(200, document);
  // Old versions of kubectl check fields by this document, and those that it does not know not at all. It may be empty.
  const protobuf = 'application/com.github.proto-openapi.spec.v2.v1.0+protobuf';
  if (url.pathname === '/openapi/v2') return void res.writeHead(200, { 'Content-Type': protobuf }).end();

  const access = accessOf(req, url, body);
  if (!access) return send(404, refusal(404, 'NotFound', `no such path: ${url.pathname}`));
  cluster.accesses.push(access);
  const [status, json] = perform(cluster, access);
  send(status, json);
}

/** What the server can do, as kubectl asks before it does anything. */
function discovery(path: string): object | undefined {
  if (path === '/version') return { major: '1', minor: '32', gitVersion: 'v1.32.0' };
  if (path === '/api') return { kind: 'APIVersions', versions: ['v1'] };
  if (path === '/apis') {
    const list = groups.map((groupVersion) => {
      const [name, version] = groupVersion.split('/');
      const preferred = { groupVersion, version };
      return { name, versions: [preferred], preferredVersion: preferred };
    });
    return { kind: 'APIGroupList', apiVersion: 'v1', groups: list };
  }
  if (path === '/openapi/v3') {
    const all = ['api/v1', ...groups.map((groupVersion) => `apis/${groupVersion}`)];
    return { paths: Object.fromEntries(all.map((at) => [at, { serverRelativeURL: `/openapi/v3/${at}` }])) };
  }
  const [, openapi, groupVersion = ''] = /^(\/openapi\/v3)?\/apis?\/(v1|[a-z0-9.]+\/v[0-9])$/.exec(path) ?? [];
  const kinds = KINDS.filter(([name]) => name === groupVersion);
  if (kinds.length === 0) return undefined;
  return openapi === undefined ? resources(groupVersion) : fieldValidation(groupVersion);
}

function resources(groupVersion: string): object {
  const list = KINDS.filter(([name]) => name === groupVersion).map(([, kind, name, namespaced]) => ({
    name,
    singularName: kind.toLowerCase(),
    namespaced,
    kind,
    verbs: ['create', 'get', 'patch'],
  }));
  return { kind: 'APIResourceList', groupVersion, resources: list };
}

/** Tells kubectl that the server itself refuses unknown fields, so that it need not. */
function fieldValidation(groupVersion: string): object {
  const [version = '', group = ''] = groupVersion.split('/').reverse();
  const paths = KINDS.filter(([name]) => name === groupVersion).map(([, kind, plural]) => [
    `/${plural}/{name}`,
    {
      patch: {
        parameters: [{ name: 'fieldValidation', in: 'query' }],
        'x-kubernetes-group-version-kind': { group, version, kind },
      },
    },
  ]);
  return { openapi: '3.0.0', info: { title: 'test', version: '1' }, paths: Object.fromEntries(paths) };
}

function accessOf(req: IncomingMessage, url: URL, body: string): Access | undefined {
  const at = /^\/apis?\/(?:v1|[a-z0-9.]+\/v[0-9])(?:\/namespaces\/([a-z0-9-]+))?\/([a-z]+)\/([a-z0-9.-]+)$/;
  const [, namespace, resource, name] = at.exec(url.pathname) ?? [];
  if (resource === undefined || name === undefined) return undefined;
  return {
    verb: (req.method ?? '').toLowerCase(),
    resource,
    namespace,
    name,
    query: Object.fromEntries(url.searchParams),
    contentType: req.headers['content-type'],
    body,
  };
}

function refusal(code: number, reason: string, message: string): object {
  return { kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message };
}

function perform(cluster: Cluster, access: Access): [status: number, json: object] {
  const { verb, resource, namespace, name, contentType, body } = access;
  const what = `${resource} "${name}"`;
  if (!cluster.allows(access)) return [403, refusal(403, 'Forbidden', `${what} is forbidden`)];
  const key = [namespace, resource, name].filter((part) => part !== undefined).join('/');
  const stored = cluster.objects.get(key);
  if (verb === 'get') {
    if (!stored) return [404, refusal(404, 'NotFound', `${what} not found`)];
    cluster.afterRead();
    return [200, stored];
  }
  if (verb !== 'patch') return [405, refusal(405, 'MethodNotAllowed', `${verb} is not served here`)];
  const given: StoredObject = parse(body);
  if (!contentType?.startsWith('application/apply-patch')) {
    // A strategic merge, which `kubectl rollout restart` sends. Nothing here reads what it changes.
    return stored ? [200, stored] : [404, refusal(404, 'NotFound', `${what} not found`)];
  }
  const { resourceVersion = stored?.metadata.resourceVersion } = given.metadata;
  if (resourceVersion !== stored?.metadata.resourceVersion)
    return [409, refusal(409, 'Conflict', `${what}: the object has been modified`)];
  if (cluster.owner !== undefined)
    return [409, refusal(409, 'Conflict', `Apply failed with 1 conflict: conflict with "${cluster.owner}"`)];
  const next = String(Number(resourceVersion ?? 0) + 1);
  const object = { ...given, metadata: { ...given.metadata, uid: `uid-of-${name}`, resourceVersion: next } };
  cluster.objects.set(key, object);
  return [stored ? 200 : 201, object];
}
