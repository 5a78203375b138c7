// examples/k8s-*.yaml: what a reviewer would demand of them, each demand shown to notice a manifest that breaks it.
import assert from 'node:assert/strict';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type IDeployment, Deployment } from 'kubernetes-models/apps/v1';
import { type IHorizontalPodAutoscaler, HorizontalPodAutoscaler } from 'kubernetes-models/autoscaling/v2';
import { type ICronJob, CronJob } from 'kubernetes-models/batch/v1';
import { type INetworkPolicy, NetworkPolicy } from 'kubernetes-models/networking.k8s.io/v1';
import { type IPodDisruptionBudget, PodDisruptionBudget } from 'kubernetes-models/policy/v1';
import { type IRole, type IRoleBinding, Role, RoleBinding } from 'kubernetes-models/rbac.authorization.k8s.io/v1';
import {
  type IContainer,
  type INamespace,
  type IPodSpec,
  type IService,
  type IServiceAccount,
  Namespace,
  Secret,
  Service,
  ServiceAccount,
} from 'kubernetes-models/v1';
import { parse, parseAllDocuments } from 'yaml';
import { mcp } from './support/command.js';
import { startExample } from './support/example.js';
import { needs, root, run, type Scope } from './support/support.js';

const path = (name: string): string => join(root, 'examples', name);
const read = (name: string): string => readFileSync(path(name), 'utf8');
const files = { server: read('k8s-deployment.yaml'), rotate: read('k8s-rotate.yaml') };
type Files = typeof files;

function temporaryFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-k8s-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

// ## The manifests as objects

/** Reads YAML 1.1, as Kubernetes does: there 0440 is octal. */
function documents(yaml: string): unknown[] {
  return parseAllDocuments(yaml, { version: '1.1' }).map((document) => {
    assert.deepEqual([document.errors, document.warnings], [[], []]);
    return document.toJS();
  });
}

/** The package that has a kind's schema, by apiVersion and kind: what is not here should not be in a manifest. */
const models = {
  'v1 Namespace': Namespace,
  'v1 ServiceAccount': ServiceAccount,
  'v1 Service': Service,
  'apps/v1 Deployment': Deployment,
  'autoscaling/v2 HorizontalPodAutoscaler': HorizontalPodAutoscaler,
  'batch/v1 CronJob': CronJob,
  'networking.k8s.io/v1 NetworkPolicy': NetworkPolicy,
  'policy/v1 PodDisruptionBudget': PodDisruptionBudget,
  'rbac.authorization.k8s.io/v1 Role': Role,
  'rbac.authorization.k8s.io/v1 RoleBinding': RoleBinding,
};
type Resource =
  | INamespace
  | IServiceAccount
  | IService
  | IDeployment
  | IHorizontalPodAutoscaler
  | ICronJob
  | INetworkPolicy
  | IPodDisruptionBudget
  | IRole
  | IRoleBinding;
const isResource = (value: unknown): value is Resource => Object.values(models).some((model) => model.is(value));

interface Pod {
  spec: IPodSpec;
  container: IContainer;
  labels: Record<string, string>;
}
interface Manifests {
  all: Resource[];
  server: Pod;
  rotate: Pod;
  account: IServiceAccount;
  rotateAccount: IServiceAccount;
  namespace: INamespace;
  deployment: IDeployment;
  service: IService;
  budget: IPodDisruptionBudget;
  scaler: IHorizontalPodAutoscaler;
  network: INetworkPolicy;
  role: IRole;
  binding: IRoleBinding;
  job: ICronJob;
  env: Record<string, string | undefined>;
}

function only<T>(among: readonly unknown[], { is }: { is: (value: unknown) => value is T }): T {
  const [found, ...others] = among.filter(is);
  assert.ok(found !== undefined && others.length === 0, 'one document of each kind in a file');
  return found;
}

function podOf(template: { metadata?: { labels?: Record<string, string> }; spec?: IPodSpec } | undefined): Pod {
  const { spec, metadata } = template ?? {};
  const [container, ...others] = spec?.containers ?? [];
  assert.ok(spec && container && others.length === 0 && !spec.initContainers, 'one container in a pod');
  return { spec, container, labels: metadata?.labels ?? {} };
}

function load(texts: Files): Manifests {
  const [first, second] = [documents(texts.server), documents(texts.rotate)];
  const all = [...first, ...second].map((document) => {
    assert.ok(isResource(document), `of a kind that is known here: ${JSON.stringify(document)}`);
    return document;
  });
  const deployment = only(first, Deployment);
  const job = only(second, CronJob);
  const server = podOf(deployment.spec?.template);
  return {
    all,
    server,
    rotate: podOf(job.spec?.jobTemplate.spec?.template),
    account: only(first, ServiceAccount),
    rotateAccount: only(second, ServiceAccount),
    namespace: only(first, Namespace),
    deployment,
    service: only(first, Service),
    budget: only(first, PodDisruptionBudget),
    scaler: only(first, HorizontalPodAutoscaler),
    network: only(first, NetworkPolicy),
    role: only(second, Role),
    binding: only(second, RoleBinding),
    job,
    env: Object.fromEntries((server.container.env ?? []).map(({ name, value }) => [name, value])),
  };
}

/** A quantity of cores or octets as a number. */
function quantity(value: string | number | undefined): number {
  const [, amount, unit = ''] = /^([0-9.]+)(m|[KMG]i)?$/.exec(String(value)) ?? [];
  assert.ok(amount !== undefined, `a quantity: ${value}`);
  return Number(amount) * ({ '': 1, m: 0.001, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30 }[unit] ?? Number.NaN);
}

// ## What the rest of the repository says

/** How long the example server takes at most to end after SIGTERM: the sum of what it waits for. */
const drainSeconds = [...read('server.ts').matchAll(/setTimeout\(.*, ([0-9_]+)\)/g)]
  .map(([, wait = '']) => Number(wait.replace('_', '')) / 1000)
  .reduce((sum, wait) => sum + wait, 0);

/** The Secret that the command prints with no more than a namespace said. */
async function commandSecret(): Promise<{ name: string; namespace: string; keys: string[]; text: string }> {
  const { code, stdout, stderr } = await mcp(root, ['k8s', '--ephemeral', '-n', 'mcp-server', '--bits', '2048']);
  assert.equal(code, 0, stderr);
  const printed: unknown = parse(stdout, { version: '1.1' });
  assert.ok(Secret.is(printed));
  const { metadata: { name = '', namespace = '' } = {}, data = {} } = printed;
  const text = Buffer.from(Object.values(data)[0] ?? '', 'base64').toString();
  return { name, namespace, keys: Object.keys(data), text };
}
const secret = await commandSecret();

// ## The demands

const probes = ({ startupProbe, livenessProbe, readinessProbe }: IContainer) =>
  [startupProbe, livenessProbe, readinessProbe].map((probe) => probe?.httpGet);

const rules: Record<string, (manifests: Manifests) => void> = {
  'every document holds to its Kubernetes schema': ({ all }) => {
    for (const document of all) {
      const { apiVersion, kind } = document;
      const [, Model] = Object.entries(models).find(([name]) => name === `${apiVersion} ${kind}`) ?? [];
      assert.ok(Model, `${apiVersion} ${kind}`);
      const checked: { validate(): void } = Reflect.construct(Model, [document]);
      checked.validate();
    }
  },

  'everything is in one namespace, which refuses pods that are not confined': ({ all, namespace }) => {
    const spaces = all.map(({ metadata }) => metadata?.namespace ?? metadata?.name);
    assert.deepEqual(new Set(spaces), new Set([namespace.metadata?.name]));
    assert.notEqual(namespace.metadata?.name, 'default');
    assert.equal(namespace.metadata?.labels?.['pod-security.kubernetes.io/enforce'], 'restricted');
  },

  'pods are confined as the restricted profile asks, with a root file system that nobody writes': (manifests) => {
    for (const { spec, container } of [manifests.server, manifests.rotate]) {
      const { runAsNonRoot, runAsUser, runAsGroup, seccompProfile } = spec.securityContext ?? {};
      assert.deepEqual([runAsNonRoot, seccompProfile?.type], [true, 'RuntimeDefault']);
      assert.ok(Number(runAsUser) > 10_000 && Number(runAsGroup) > 10_000, 'no user of the node');
      assert.deepEqual(container.securityContext, {
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      });
      for (const shared of ['hostNetwork', 'hostPID', 'hostIPC', 'shareProcessNamespace']) assert.ok(!(shared in spec));
    }
  },

  'only the job can talk to the API server': ({ server, rotate, account, rotateAccount }) => {
    const { spec } = server;
    assert.deepEqual([account.automountServiceAccountToken, spec.automountServiceAccountToken], [false, false]);
    assert.equal(spec.serviceAccountName, account.metadata?.name);
    const mounted = [rotateAccount.automountServiceAccountToken, rotate.spec.automountServiceAccountToken];
    assert.deepEqual(mounted, [false, true]);
    assert.equal(rotate.spec.serviceAccountName, rotateAccount.metadata?.name);
    assert.notEqual(rotateAccount.metadata?.name, account.metadata?.name);
  },

  'images are named by a digest, which is a placeholder that nobody can take for an image': ({ server, rotate }) => {
    for (const { container } of [server, rotate])
      assert.match(container.image ?? '', /^registry\.example\/[a-z-]+@sha256:0{64}$/);
  },

  'selectors match the labels of the pods': (manifests) => {
    const { deployment, service, budget, network, scaler, server, rotate } = manifests;
    assert.ok(Object.keys(server.labels).length > 0);
    const spread = server.spec.topologySpreadConstraints?.map(({ labelSelector }) => labelSelector?.matchLabels) ?? [];
    const selectors = [
      deployment.spec?.selector.matchLabels,
      service.spec?.selector,
      budget.spec?.selector?.matchLabels,
      network.spec?.podSelector?.matchLabels,
      ...spread,
    ];
    for (const selector of selectors) assert.deepEqual(selector, server.labels);
    assert.notDeepEqual(rotate.labels, server.labels, 'the job gets no requests');
    const { apiVersion, kind, name } = scaler.spec?.scaleTargetRef ?? {};
    assert.deepEqual([apiVersion, kind, name], ['apps/v1', 'Deployment', deployment.metadata?.name]);
  },

  'the one port is what the server listens on, and everything asks for it by its name': (manifests) => {
    const { server, rotate, service, network, env } = manifests;
    const [port, ...others] = server.container.ports ?? [];
    assert.deepEqual([others, rotate.container.ports], [[], undefined], 'no port that nothing serves');
    assert.equal(String(port?.containerPort), env.PORT);
    assert.equal(env.HOST, '0.0.0.0');
    const asked = [
      ...(service.spec?.ports ?? []).map(({ targetPort }) => targetPort),
      ...probes(server.container).map((probe) => probe?.port),
      ...(network.spec?.ingress ?? []).flatMap(({ ports = [] }) => ports.map((one) => one.port)),
    ];
    assert.equal(asked.length, 5);
    for (const name of asked) assert.equal(name, port?.name);
  },

  'readiness is asked at another path than what restarts the server': ({ server }) => {
    const [startup, live, ready] = probes(server.container).map((probe) => probe?.path ?? '');
    assert.deepEqual([startup, live, ready], ['/healthz', '/healthz', '/readyz']);
    const { periodSeconds = 10, failureThreshold = 3 } = server.container.startupProbe ?? {};
    assert.ok(periodSeconds * failureThreshold >= 30, 'a slow node has time to start it');
  },

  'the network policy lets the probes and the Service in, and nothing else in or out': ({ network, server }) => {
    const { policyTypes, ingress = [], egress } = network.spec ?? {};
    assert.deepEqual([policyTypes, egress], [['Ingress', 'Egress'], []]);
    const [port] = server.container.ports ?? [];
    // Without "from": the kubelet asks from a node's address, which no selector can name.
    assert.deepEqual(ingress, [{ ports: [{ port: port?.name, protocol: 'TCP' }] }]);
  },

  'a pod that ends is sent nothing new and finishes what it has': ({ server, deployment }) => {
    const asleep = server.container.lifecycle?.preStop?.sleep?.seconds ?? 0;
    assert.ok(asleep >= 5 && drainSeconds >= 10);
    assert.ok((server.spec.terminationGracePeriodSeconds ?? 0) >= asleep + drainSeconds + 5);
    assert.deepEqual(deployment.spec?.strategy, {
      type: 'RollingUpdate',
      rollingUpdate: { maxUnavailable: 0, maxSurge: 1 },
    });
  },

  'there are two pods at least, apart, and one place says how many': ({ deployment, scaler, budget, server }) => {
    const { minReplicas = 1, maxReplicas = 0, metrics = [] } = scaler.spec ?? {};
    assert.ok(minReplicas >= 2 && maxReplicas > minReplicas && metrics.length > 0);
    assert.equal(deployment.spec?.replicas, undefined, 'applying the manifest again would undo the autoscaler');
    assert.equal(budget.spec?.maxUnavailable, 1);
    const keys = server.spec.topologySpreadConstraints?.map(({ topologyKey }) => topologyKey);
    assert.deepEqual(keys, ['kubernetes.io/hostname', 'topology.kubernetes.io/zone']);
  },

  'resources are bounded, and the thread pool fits the cores': ({ server, rotate, env }) => {
    for (const { container } of [server, rotate]) {
      const { requests, limits } = container.resources ?? {};
      assert.ok(quantity(requests?.cpu) > 0);
      assert.equal(quantity(requests?.memory), quantity(limits?.memory), 'memory cannot be taken back');
    }
    assert.equal(Number(env.UV_THREADPOOL_SIZE), quantity(server.container.resources?.limits?.cpu) + 2);
  },

  'the key is read by the server and no one else': ({ server }) => {
    const [volume, ...others] = server.spec.volumes ?? [];
    assert.deepEqual(others, []);
    assert.ok([0o400, 0o440].includes(volume?.secret?.defaultMode ?? 0), 'octal, for owner and group');
    assert.equal(server.spec.securityContext?.fsGroup, server.spec.securityContext?.runAsGroup);
    for (const item of volume?.secret?.items ?? []) assert.equal(item.mode, undefined);
    assert.equal(volume?.secret?.optional, undefined, 'a pod without its key waits');
  },

  'the key is where the server looks, in a mount that Kubernetes keeps fresh': ({ server, env }) => {
    const [mount, ...others] = server.container.volumeMounts ?? [];
    const volume = server.spec.volumes?.find(({ name }) => name === mount?.name);
    const [item] = volume?.secret?.items ?? [];
    assert.deepEqual([others, mount?.readOnly], [[], true]);
    assert.ok(mount && !('subPath' in mount || 'subPathExpr' in mount), 'such a mount is never updated');
    assert.equal(env.MCP_KEY_FILE_PATH, `${mount.mountPath}/${item?.path}`);
  },

  'Secret, key and namespace are those of the command': ({ server, role, namespace, rotate }) => {
    const source = server.spec.volumes?.[0]?.secret;
    assert.equal(namespace.metadata?.name, secret.namespace);
    assert.equal(source?.secretName, secret.name);
    assert.deepEqual(
      source?.items?.map(({ key }) => key),
      secret.keys,
    );
    assert.deepEqual(role.rules?.[0]?.resourceNames, [secret.name]);
    const [script = ''] = rotate.container.args ?? [];
    assert.deepEqual(
      [...script.matchAll(/get secret (\S+) -n (\S+) /g)].map(([, name, space]) => [name, space]),
      [1, 2].map(() => [secret.name, secret.namespace]),
    );
    assert.ok(script.includes(`{.data.${secret.keys[0]}}`) && script.includes(`k8s -n ${secret.namespace} --from -`));
  },

  'the job may read and patch that one Secret, and nothing else': ({ role, binding, rotateAccount }) => {
    const [rule, ...others] = role.rules ?? [];
    assert.deepEqual(others, []);
    const { apiGroups, resources, resourceNames = [], verbs, ...more } = rule ?? {};
    assert.deepEqual([apiGroups, resources, verbs, more], [[''], ['secrets'], ['get', 'patch'], {}]);
    assert.equal(resourceNames.length, 1);
    const { kind, name } = binding.roleRef;
    assert.deepEqual([kind, name], ['Role', role.metadata?.name]);
    const { name: account, namespace } = rotateAccount.metadata ?? {};
    assert.deepEqual(binding.subjects, [{ kind: 'ServiceAccount', name: account, namespace }]);
  },

  'a rotation happens once a month, is never tried twice and fails as a whole': ({ job, rotate }) => {
    const { schedule, timeZone, concurrencyPolicy, suspend } = job.spec ?? {};
    assert.match(schedule ?? '', /^[0-9]+ [0-9]+ ([1-9]|1[0-9]|2[0-8]) \* \*$/);
    assert.deepEqual([timeZone, concurrencyPolicy, suspend], ['Etc/UTC', 'Forbid', undefined]);
    const { backoffLimit, activeDeadlineSeconds = 0, parallelism, completions } = job.spec?.jobTemplate.spec ?? {};
    assert.deepEqual([backoffLimit, parallelism, completions], [0, undefined, undefined]);
    assert.equal(rotate.spec.restartPolicy, 'Never');
    assert.ok(activeDeadlineSeconds >= 60 && activeDeadlineSeconds <= 600);
    assert.deepEqual(rotate.container.command, ['bash', '-euo', 'pipefail', '-c']);
    assert.match(rotate.container.args?.[0] ?? '', /resourceVersion: .* \| kubectl apply --server-side -f -\n$/);
  },
};

/** The rules that the manifests break. */
function broken(texts: Files): string[] {
  const manifests = load(texts);
  return Object.entries(rules).flatMap(([name, rule]) => {
    try {
      rule(manifests);
      return [];
    } catch (error) {
      // Anything but an assertion's or a schema's verdict would be a fault of the rule.
      if (error instanceof TypeError || error instanceof ReferenceError) throw error;
      return [name];
    }
  });
}

/** What the types of the same package know nothing of: the schemas allow unknown members, and so misspelt ones. */
async function unknownFields(scope: Scope, texts: Files): Promise<string> {
  const folder = temporaryFolder(scope);
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  const code = load(texts).all.map(({ apiVersion, kind, ...rest }, index) => {
    const from = apiVersion === 'v1' ? 'v1' : apiVersion;
    return `import { ${kind} as Kind${index} } from 'kubernetes-models/${from}';
export const d${index} = new Kind${index}(${JSON.stringify(rest)});\n`;
  });
  writeFileSync(join(folder, 'manifests.ts'), code.join(''));
  const options = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'preserve', '--types', ''];
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const { stdout } = await run(process.execPath, [tsc, ...options, 'manifests.ts'], { cwd: folder });
  return stdout;
}

/** Manifests with one text of one file replaced, which must be there. */
function edited(file: keyof Files, from: string | RegExp, to: string): Files {
  const text = files[file].replace(from, to);
  assert.notEqual(text, files[file], `the text to replace is there: ${from}`);
  return { ...files, [file]: text };
}

/** Each way to spoil a manifest, and the beginnings of the rules that must notice it: these, and no others. */
const breaches: [file: keyof Files, from: string | RegExp, to: string, ...noticed: string[]][] = [
  ['server', 'periodSeconds: 5', 'periodSeconds: often', 'every document holds'],
  ['rotate', 'backoffLimit: 0', 'backoffLimit: none', 'every document holds', 'a rotation'],
  ['server', /(kind: Service\n.*\n.*\n {2}namespace:) mcp-server/, '$1 default', 'everything is in one'],
  ['server', 'enforce: restricted', 'enforce: baseline', 'everything is in one'],
  ['server', 'runAsNonRoot: true', 'runAsNonRoot: false', 'pods are confined'],
  ['server', 'runAsUser: 10001', 'runAsUser: 0', 'pods are confined'],
  ['rotate', 'type: RuntimeDefault', 'type: Unconfined', 'pods are confined'],
  ['server', 'readOnlyRootFilesystem: true', 'readOnlyRootFilesystem: false', 'pods are confined'],
  ['rotate', 'drop: ["ALL"]', 'drop: ["NET_RAW"]', 'pods are confined'],
  ['server', 'allowPrivilegeEscalation: false', 'privileged: true', 'pods are confined'],
  ['server', 'enableServiceLinks: false', 'hostNetwork: true', 'pods are confined'],
  ['server', /automountServiceAccountToken: false #.*/, '', 'only the job can talk'],
  ['server', /\n {6}automountServiceAccountToken: false/, '', 'only the job can talk'],
  ['server', 'serviceAccountName: mcp-server', 'serviceAccountName: default', 'only the job can talk'],
  ['rotate', 'serviceAccountName: mcp-rotate', 'serviceAccountName: mcp-server', 'only the job can talk'],
  ['server', /@sha256:0+/, ':latest', 'images are named'],
  ['rotate', /@sha256:00/, '@sha256:1f', 'images are named'],
  ['server', /(selector:\n {4})app: mcp-server/, '$1app: mcp', 'selectors match'],
  ['server', /(podSelector:\n {4}matchLabels:\n {6})app: mcp-server/, '$1app: mcp', 'selectors match'],
  ['server', /(labelSelector:\n {12}matchLabels:\n {14})app: mcp-server/, '$1app: mcp', 'selectors match'],
  [
    'server',
    /(maxUnavailable: 1.*\n {2}selector:\n {4}matchLabels:\n {6})app: mcp-server/,
    '$1app: m',
    'selectors match',
  ],
  ['server', /(kind: Deployment\n {4}name:) mcp-server/, '$1 mcp', 'selectors match'],
  ['rotate', 'app: mcp-rotate', 'app: mcp-server', 'selectors match'],
  ['server', 'containerPort: 3000', 'containerPort: 8080', 'the one port'],
  ['server', 'targetPort: http', 'targetPort: https', 'the one port'],
  ['server', /(readyz\n +port:) http/, '$1 web', 'the one port'],
  ['server', 'containerPort: 3000', 'containerPort: 3000\n            - containerPort: 9090', 'the one port'],
  ['server', 'value: 0.0.0.0', 'value: 127.0.0.1', 'the one port'],
  ['server', '- port: http', '- port: 8080', 'the one port', 'the network policy'],
  ['server', 'path: /readyz', 'path: /healthz', 'readiness is asked'],
  ['server', /(livenessProbe:.*\n.*\n +path:) \/healthz/, '$1 /readyz', 'readiness is asked'],
  ['server', 'failureThreshold: 30', 'failureThreshold: 3', 'readiness is asked'],
  ['server', '- ports:', '- from: [{ podSelector: {} }]\n      ports:', 'the network policy'],
  ['server', '["Ingress", "Egress"]', '["Ingress"]', 'the network policy'],
  ['server', 'egress: []', 'egress: [{}]', 'the network policy'],
  ['server', 'seconds: 5 #', 'seconds: 0 #', 'a pod that ends'],
  ['server', 'terminationGracePeriodSeconds: 30', 'terminationGracePeriodSeconds: 15', 'a pod that ends'],
  ['server', 'maxUnavailable: 0', 'maxUnavailable: 1', 'a pod that ends'],
  ['server', 'minReplicas: 2', 'minReplicas: 1', 'there are two pods'],
  ['server', /(\nspec:\n)( {2}# No "replicas")/, '$1  replicas: 2\n$2', 'there are two pods'],
  ['server', 'maxUnavailable: 1', 'maxUnavailable: 2', 'there are two pods'],
  ['server', 'kubernetes.io/hostname', 'example.com/rack', 'there are two pods'],
  ['server', 'value: "4"', 'value: "2"', 'resources are bounded'],
  ['server', /(limits:\n.*\n +memory:) 256Mi/, '$1 1Gi', 'resources are bounded'],
  ['rotate', /limits:\n.*\n/, '', 'resources are bounded'],
  ['server', 'defaultMode: 0440', 'defaultMode: 440', 'the key is read by'],
  ['server', 'defaultMode: 0440', 'defaultMode: 0444', 'the key is read by'],
  ['server', /defaultMode: 0440.*\n/, 'optional: true\n', 'the key is read by'],
  ['server', 'fsGroup: 10001', 'fsGroup: 0', 'the key is read by'],
  ['server', 'path: mcp-private.json', 'path: private.json', 'the key is where'],
  ['server', 'mountPath: /run/secrets/mcp', 'mountPath: /keys', 'the key is where'],
  ['server', 'readOnly: true', 'readOnly: true\n              subPath: mcp-private.json', 'the key is where'],
  ['server', 'secretName: mcp-server-keys', 'secretName: mcp-keys', 'Secret, key and namespace'],
  ['server', 'key: mcp_jwks', 'key: mcp-private.json', 'Secret, key and namespace'],
  ['rotate', '.data.mcp_jwks', '.data.jwks', 'Secret, key and namespace'],
  ['rotate', 'k8s -n mcp-server', 'k8s', 'Secret, key and namespace'],
  ['rotate', 'resourceNames: ["mcp-server-keys"]', 'resourceNames: ["keys"]', 'Secret, key and namespace'],
  ['rotate', /resourceNames: .*/, '', 'Secret, key and namespace', 'the job may read'],
  ['rotate', '["get", "patch"]', '["get", "list", "patch"]', 'the job may read'],
  ['rotate', 'resources: ["secrets"]', 'resources: ["secrets", "configmaps"]', 'the job may read'],
  ['rotate', /(subjects:\n.*\n {4}name:) mcp-rotate/, '$1 default', 'the job may read'],
  ['rotate', /(kind: Role\n {2}name:) mcp-rotate/, '$1 admin', 'the job may read'],
  ['rotate', 'concurrencyPolicy: Forbid', 'concurrencyPolicy: Allow', 'a rotation'],
  ['rotate', /backoffLimit: 0.*\n/, '\n', 'a rotation'],
  ['rotate', 'restartPolicy: Never', 'restartPolicy: OnFailure', 'a rotation'],
  ['rotate', '"-euo", "pipefail", ', '"-eu", ', 'a rotation'],
  ['rotate', '17 3 1 * *', '17 3 * * *', 'a rotation'],
  ['rotate', /sed .* \| kubectl/, 'kubectl', 'a rotation'],
];

describe('the manifests', () => {
  for (const [name, rule] of Object.entries(rules)) it(`hold: ${name}`, () => rule(load(files)));

  it('have no field that Kubernetes does not know', async (t) => {
    assert.equal(await unknownFields(t, files), '');
    const misspelt = edited('server', 'topologySpreadConstraints', 'topologySpreadConstraint');
    assert.match(await unknownFields(t, misspelt), /'"topologySpreadConstraint"' does not exist in type 'IPodSpec'/);
  });

  for (const [name, text] of Object.entries(files))
    it(`name files that exist: ${name}`, () => {
      for (const [file] of text.matchAll(/\b(k8s-[a-z]+\.yaml|Dockerfile)\b/g)) assert.ok(existsSync(path(file)), file);
    });
});

describe('a manifest is found out', () => {
  for (const [file, from, to, ...noticed] of breaches)
    it(`${file}: ${String(from).slice(0, 60)} → ${to.trim().slice(0, 40)}`, () => {
      const found = broken(edited(file, from, to));
      const expected = noticed.map((start) => Object.keys(rules).find((name) => name.startsWith(start)) ?? start);
      assert.deepEqual(found, expected);
    });

  it('by every rule at least once', () => {
    const noticed = breaches.flatMap(([, , , ...starts]) => starts);
    const idle = Object.keys(rules).filter((name) => !noticed.some((start) => name.startsWith(start)));
    assert.deepEqual(idle, []);
  });
});

describe('kubectl', needs('kubectl'), () => {
  it('reads every document, and the mode of the key file as octal', async () => {
    // `label --local` reads and prints the objects without a cluster.
    for (const [file, count] of [
      ['k8s-deployment.yaml', 7],
      ['k8s-rotate.yaml', 4],
    ] as const) {
      const args = ['label', '--local', '-o', 'json', '-f', path(file), 'checked=yes'];
      const { code, stdout, stderr } = await run('kubectl', args);
      assert.equal(code, 0, stderr);
      assert.equal(stdout.match(/"checked": "yes"/g)?.length, count);
      if (file === 'k8s-deployment.yaml') assert.match(stdout, /"defaultMode": 288\b/);
    }
  });

  it('sets the image of the Deployment by its name', async () => {
    const input =
      files.server.split(/^---$/m).find((document) => document.includes('kind: Deployment\nmetadata')) ?? '';
    const image = `registry.example/mine@sha256:${'12'.repeat(32)}`;
    const args = ['set', 'image', '--local', '-o', 'json', '-f', '-', `mcp-server=${image}`];
    const { code, stdout, stderr } = await run('kubectl', args, { input });
    assert.equal(code, 0, stderr);
    assert.deepEqual(stdout.match(/"image": .*/g), [`"image": "${image}",`]);
  });
});

describe('the example server in its pod', () => {
  const { server, env } = load(files);
  const [volume] = server.spec.volumes ?? [];
  const [item] = volume?.secret?.items ?? [];
  const [, live, ready] = probes(server.container).map((probe) => probe?.path ?? '');

  /** Writes a Secret volume as the kubelet does: the file leads through ..data, which a rename swaps. */
  function writeVolume(folder: string, version: string, text: string): string {
    const name = item?.path ?? '';
    mkdirSync(join(folder, version));
    writeFileSync(join(folder, version, name), text);
    chmodSync(join(folder, version, name), volume?.secret?.defaultMode ?? 0);
    symlinkSync(version, join(folder, '..data_tmp'));
    renameSync(join(folder, '..data_tmp'), join(folder, '..data'));
    if (!existsSync(join(folder, name))) symlinkSync(join('..data', name), join(folder, name));
    return join(folder, name);
  }

  /** Starts it with the manifest's environment, but on a free port of this machine. */
  async function start(scope: Scope, keyFile: string): Promise<string> {
    const { UV_THREADPOOL_SIZE = '' } = env;
    return (await startExample(scope, 'server.js', { UV_THREADPOOL_SIZE, MCP_KEY_FILE_PATH: keyFile })).url;
  }
  const status = async (url: string, path = ''): Promise<number> => {
    const response = await fetch(new URL(path, url));
    await response.arrayBuffer();
    return response.status;
  };

  it('starts from the volume, answers its probes without a token and greets a user', async (t) => {
    const url = await start(t, writeVolume(temporaryFolder(t), '..1', secret.text));
    assert.deepEqual([await status(url, live), await status(url, ready), await status(url)], [200, 200, 401]);
    const { stdout, stderr } = await run(process.execPath, [join(root, 'build/examples/gateway.js'), url]);
    assert.equal(stdout, 'Hello, Ada!\n', stderr);
  });

  it('is alive but not ready while its only key has expired, and ready with the next Secret', async (t) => {
    const folder = temporaryFolder(t);
    const url = await start(t, writeVolume(folder, '..1', secret.text));
    const now = Math.floor(Date.now() / 1000);
    const { keys } = JSON.parse(secret.text);
    writeVolume(folder, '..2', JSON.stringify({ keys: keys.map((key: object) => ({ ...key, exp: now - 60 })) }));
    await untilStatus(503);
    assert.equal(await status(url, live), 200);
    writeVolume(folder, '..3', secret.text);
    await untilStatus(200);

    async function untilStatus(expected: number): Promise<void> {
      for (const end = Date.now() + 15_000; (await status(url, ready)) !== expected; await sleep(100))
        if (Date.now() > end) assert.fail(`${ready} did not become ${expected} within 15 s`);
    }
  });
});
