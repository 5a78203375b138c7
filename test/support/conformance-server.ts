// What the protocol's conformance suite asks a server for: tools, prompts and resources by the names and texts that it
// looks for; over sessions for revisions up to 2025-11-25, and without them since.
import { randomBytes, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type CallToolResult,
  type ContentBlock,
  completable,
  createMcpHandler,
  createRequestStateCodec,
  type ElicitRequestFormParams,
  type EventStore,
  fromJsonSchema,
  inputRequired,
  type InputRequests,
  type InputRequiredResult,
  isLegacyRequest,
  type JSONRPCMessage,
  type McpHandlerRequestOptions,
  McpServer,
  ResourceTemplate,
  type ServerContext,
  WebStandardStreamableHTTPServerTransport,
} from '@modelcontextprotocol/server';
import { z } from 'zod';

type ToolResult = CallToolResult | InputRequiredResult;
type Form = ElicitRequestFormParams['requestedSchema'];

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==';
const WAV = 'UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=';
const image = { type: 'image', data: PNG, mimeType: 'image/png' } as const;
const say = (text: string) => ({ type: 'text', text }) as const;
const resource = (uri: string, mimeType: string, text: string) =>
  ({ type: 'resource', resource: { uri, mimeType, text } }) as const;
const done = (text: string): CallToolResult => ({ content: [say(text)] });

type Tools = Record<string, (ctx: ServerContext) => ToolResult | Promise<ToolResult>>;

const plain: Tools = {
  test_simple_text: () => done('This is a simple text response for testing.'),
  test_image_content: () => ({ content: [image] }),
  test_audio_content: () => ({ content: [{ type: 'audio', data: WAV, mimeType: 'audio/wav' }] }),
  test_embedded_resource: () => ({
    content: [resource('test://embedded-resource', 'text/plain', 'This is an embedded resource content.')],
  }),
  test_multiple_content_types: () => ({
    content: [
      say('Multiple content types test:'),
      image,
      resource('test://mixed-content-resource', 'application/json', '{"test":"data","value":123}'),
    ],
  }),
  test_error_handling: () => ({
    ...done('This tool intentionally returns an error for testing'),
    isError: true,
  }),
  test_tool_with_logging: async (ctx) => {
    for (const message of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
      await ctx.mcpReq.log('info', message);
      await sleep(50);
    }
    return done('logged');
  },
  test_logging_tool: async (ctx) => {
    await ctx.mcpReq.log('info', 'only for those who asked for it');
    return done('logged');
  },
  test_tool_with_progress: async (ctx) => {
    const progressToken = ctx.mcpReq._meta?.progressToken;
    for (const progress of [0, 50, 100]) {
      if (progressToken !== undefined) {
        const params = { progressToken, progress, total: 100 };
        await ctx.mcpReq.notify({ method: 'notifications/progress', params });
      }
      await sleep(50);
    }
    return done('complete');
  },
  test_reconnection: async (ctx) => {
    ctx.http?.closeSSE?.();
    await sleep(100);
    return done('the stream was closed and taken up again');
  },
};

/** Forms of which the suite looks at the fields. */
const forms: Record<string, Form['properties']> = {
  test_elicitation_sep1034_defaults: {
    name: { type: 'string', default: 'John Doe' },
    age: { type: 'integer', default: 30 },
    score: { type: 'number', default: 95.5 },
    status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
    verified: { type: 'boolean', default: true },
  },
  test_elicitation_sep1330_enums: {
    untitledSingle: { type: 'string', enum: ['option1', 'option2', 'option3'] },
    titledSingle: {
      type: 'string',
      oneOf: [
        { const: 'value1', title: 'First Option' },
        { const: 'value2', title: 'Second Option' },
        { const: 'value3', title: 'Third Option' },
      ],
    },
    legacyEnum: {
      type: 'string',
      enum: ['opt1', 'opt2', 'opt3'],
      enumNames: ['Option One', 'Option Two', 'Option Three'],
    },
    untitledMulti: { type: 'array', items: { type: 'string', enum: ['option1', 'option2', 'option3'] } },
    titledMulti: {
      type: 'array',
      items: {
        anyOf: [
          { const: 'value1', title: 'First Choice' },
          { const: 'value2', title: 'Second Choice' },
          { const: 'value3', title: 'Third Choice' },
        ],
      },
    },
  },
};

/** Tools that ask the client in the midst of a call, as until 2025-11-25. */
function addCallbacks(server: McpServer): void {
  const userForm: Form = {
    type: 'object',
    properties: {
      username: { type: 'string', description: "User's response" },
      email: { type: 'string', description: "User's email address" },
    },
    required: ['username', 'email'],
  };
  server.registerTool(
    'test_sampling',
    { description: 'Asks the model', inputSchema: z.object({ prompt: z.string() }) },
    async ({ prompt }, ctx) => {
      const messages = [{ role: 'user' as const, content: say(prompt) }];
      const { content } = await ctx.mcpReq.requestSampling({ messages, maxTokens: 100 });
      return done(`LLM response: ${JSON.stringify(content)}`);
    },
  );
  server.registerTool(
    'test_elicitation',
    { description: 'Asks the user', inputSchema: z.object({ message: z.string() }) },
    async ({ message }, ctx) =>
      done(`User response: ${JSON.stringify(await ctx.mcpReq.elicitInput({ message, requestedSchema: userForm }))}`),
  );
  for (const [name, properties] of Object.entries(forms)) {
    server.registerTool(name, { description: 'Asks the user' }, async (ctx) => {
      const requestedSchema = { type: 'object' as const, properties };
      const { action, content } = await ctx.mcpReq.elicitInput({ message: 'Please fill in', requestedSchema });
      return done(`Elicitation completed: action=${action}, content=${JSON.stringify(content)}`);
    });
  }
}

/** Signs what a client carries from one round of questions to the next. */
const state = createRequestStateCodec<string>({ key: randomBytes(32) });

const askUser = (message: string, property: string, schema: Form['properties'][string] = { type: 'string' }) =>
  inputRequired.elicit({
    message,
    requestedSchema: { type: 'object', properties: { [property]: schema }, required: [property] },
  });
const askModel = (text: string, maxTokens: number) =>
  inputRequired.createMessage({ messages: [{ role: 'user', content: say(text) }], maxTokens });

/** Asks until every answer is there that it asked for. */
function rounds(inputRequests: InputRequests, finish: (answers: Record<string, unknown>) => CallToolResult) {
  return ({ mcpReq: { inputResponses = {} } }: ServerContext): ToolResult => {
    const missing = Object.keys(inputRequests).some((key) => typeof inputResponses[key] !== 'object');
    return missing ? inputRequired({ inputRequests }) : finish(inputResponses);
  };
}

/** The same, with a state that the client has to bring back as it is. */
function roundsWithState(inputRequests: InputRequests, finish: () => CallToolResult) {
  return async (ctx: ServerContext): Promise<ToolResult> => {
    const { inputResponses = {}, requestState } = ctx.mcpReq;
    const complete = requestState() !== undefined && Object.keys(inputRequests).every((key) => key in inputResponses);
    return complete ? finish() : inputRequired({ inputRequests, requestState: await state.mint('asked') });
  };
}

const userName = { user_name: askUser('What is your name?', 'name') };
const confirm = { confirm: askUser('Please confirm', 'ok', { type: 'boolean' }) };

/** Tools that ask by an answer of their own, as since 2026-07-28. */
const asking: Tools = {
  test_missing_capability: rounds({ answer: askModel('What is missing?', 10) }, () => done('nothing')),
  test_streaming_elicitation: rounds(userName, () => done('asked')),
  test_input_required_result_elicitation: rounds(userName, ({ user_name }) => {
    const { content } = z.object({ content: z.object({ name: z.string() }) }).parse(user_name);
    return done(`Hello, ${content.name}!`);
  }),
  test_input_required_result_sampling: rounds(
    { capital_question: askModel('What is the capital of France?', 100) },
    (answers) => done(JSON.stringify(answers.capital_question)),
  ),
  test_input_required_result_list_roots: rounds({ client_roots: inputRequired.listRoots() }, (answers) =>
    done(JSON.stringify(answers.client_roots)),
  ),
  test_input_required_result_request_state: roundsWithState(confirm, () => done('state-ok')),
  test_input_required_result_tampered_state: roundsWithState(confirm, () => done('state-ok')),
  test_input_required_result_multiple_inputs: roundsWithState(
    { ...userName, greeting: askModel('Generate a greeting', 50), client_roots: inputRequired.listRoots() },
    () => done('all there'),
  ),
  test_input_required_result_multi_round: async ({ mcpReq: { inputResponses = {}, requestState } }) => {
    const before = requestState<string>();
    if (before === 'second' && 'step2' in inputResponses) return done('both steps done');
    const [next, question] =
      before === 'first' && 'step1' in inputResponses
        ? (['second', { step2: askUser('Step 2: What is your favorite color?', 'color') }] as const)
        : (['first', { step1: askUser('Step 1: What is your name?', 'name') }] as const);
    return inputRequired({ inputRequests: question, requestState: await state.mint(next) });
  },
  test_input_required_result_capabilities: (ctx) => {
    const capabilities = z.object({ sampling: z.unknown(), elicitation: z.unknown() }).partial();
    const envelope = z.object({ 'io.modelcontextprotocol/clientCapabilities': capabilities });
    const { 'io.modelcontextprotocol/clientCapabilities': can } = envelope.parse(ctx.mcpReq.envelope);
    const inputRequests: InputRequests = {
      ...(can.sampling ? { greeting: askModel('Generate a greeting', 50) } : {}),
      ...(can.elicitation ? userName : {}),
    };
    return Object.keys(inputRequests).length > 0 ? inputRequired({ inputRequests }) : done('nobody can be asked');
  },
};

function addTools(server: McpServer): void {
  for (const [name, run] of Object.entries({ ...plain, ...asking }))
    server.registerTool(name, { description: `The suite's ${name}` }, run);
  const inputSchema = fromJsonSchema({
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    type: 'object',
    $defs: {
      address: {
        $anchor: 'addressDef',
        type: 'object',
        properties: { street: { type: 'string' }, city: { type: 'string' } },
      },
    },
    properties: {
      name: { type: 'string' },
      address: { $ref: '#/$defs/address' },
      contactMethod: { type: 'string', enum: ['phone', 'email'] },
      phone: { type: 'string' },
      email: { type: 'string' },
    },
    allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
    if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
    then: { required: ['phone'] },
    else: { required: ['email'] },
    additionalProperties: false,
  });
  const region = { type: 'string', 'x-mcp-header': 'Region' } as const;
  const headed = fromJsonSchema({ type: 'object', properties: { region }, required: ['region'] });
  server.registerTool(
    'test_header',
    { description: 'Has an argument that a header repeats', inputSchema: headed },
    () => done('here'),
  );
  server.registerTool('json_schema_2020_12_tool', { description: 'Takes a rich schema', inputSchema }, () =>
    done('valid'),
  );
}

function addResources(server: McpServer): void {
  const texts = {
    'test://static-text': 'This is the content of the static text resource.',
    'test://watched-resource': 'watched',
  };
  for (const [uri, text] of Object.entries(texts)) {
    const about = { description: 'A text', mimeType: 'text/plain' };
    server.registerResource(uri, uri, about, () => ({ contents: [{ uri, mimeType: 'text/plain', text }] }));
  }
  const binary = 'test://static-binary';
  server.registerResource(binary, binary, { description: 'A picture', mimeType: 'image/png' }, () => ({
    contents: [{ uri: binary, mimeType: 'image/png', blob: PNG }],
  }));
  const template = new ResourceTemplate('test://template/{id}/data', { list: undefined });
  server.registerResource('template', template, { mimeType: 'application/json' }, ({ href }, { id }) => {
    const text = JSON.stringify({ id, templateTest: true, data: `Data for ID: ${String(id)}` });
    return { contents: [{ uri: href, mimeType: 'application/json', text }] };
  });
  server.server.setRequestHandler('resources/subscribe', () => ({}));
  server.server.setRequestHandler('resources/unsubscribe', () => ({}));
}

function addPrompts(server: McpServer): void {
  const from = (...contents: ContentBlock[]) => ({
    messages: contents.map((content) => ({ role: 'user' as const, content })),
  });
  const simple = () => from(say('This is a simple prompt for testing.'));
  server.registerPrompt('test_simple_prompt', { description: 'Simple' }, simple);
  server.registerPrompt('test_prompt_with_image', { description: 'A picture' }, () =>
    from(image, say('Please analyze the image above.')),
  );
  const arg1 = completable(z.string().describe('First'), (typed) =>
    ['paris', 'park', 'party'].filter((word) => word.startsWith(typed)),
  );
  server.registerPrompt(
    'test_prompt_with_arguments',
    { description: 'Arguments', argsSchema: z.object({ arg1, arg2: z.string().describe('Second') }) },
    (args) => from(say(`Prompt with arguments: arg1='${args.arg1}', arg2='${args.arg2}'`)),
  );
  server.registerPrompt(
    'test_prompt_with_embedded_resource',
    { description: 'A resource', argsSchema: z.object({ resourceUri: z.string() }) },
    ({ resourceUri }) =>
      from(
        resource(resourceUri, 'text/plain', 'Embedded resource content for testing.'),
        say('Please process the embedded resource above.'),
      ),
  );
  const context = { user_context: askUser('What context should the prompt use?', 'context') };
  server.registerPrompt('test_input_required_result_prompt', { description: 'Asks' }, (ctx) => {
    const given = ctx.mcpReq.inputResponses?.user_context;
    return given === undefined
      ? inputRequired({ inputRequests: context })
      : from(say(`With the context ${JSON.stringify(given)}`));
  });
}

function createServer(): McpServer {
  const server = new McpServer(
    { name: 'conformance', version: '1.0.0' },
    {
      capabilities: { logging: {}, completions: {}, resources: { subscribe: true } },
      requestState: { verify: state.verify },
    },
  );
  for (const add of [addTools, addCallbacks, addResources, addPrompts]) add(server);
  return server;
}

/** Remembers the events of a session, for a client that takes up a stream again. */
class Events implements EventStore {
  readonly #events: { stream: string; message: JSONRPCMessage }[] = [];
  async storeEvent(stream: string, message: JSONRPCMessage): Promise<string> {
    return String(this.#events.push({ stream, message }) - 1);
  }
  async replayEventsAfter(
    last: string,
    { send }: { send: (id: string, message: JSONRPCMessage) => Promise<void> },
  ): Promise<string> {
    const stream = this.#events[Number(last)]?.stream ?? '';
    for (const [id, event] of this.#events.entries())
      if (id > Number(last) && event.stream === stream) await send(String(id), event.message);
    return stream;
  }
}

/** A whole server: sessions for the revisions that have them, and a new server for each request of the others. */
export function conformanceServer(): (request: Request, options?: McpHandlerRequestOptions) => Promise<Response> {
  const modern = createMcpHandler(createServer, { legacy: 'reject' });
  const sessions = new Map<string, WebStandardStreamableHTTPServerTransport>();
  return async (request, options) => {
    if (!(await isLegacyRequest(request))) return modern.fetch(request, options);
    const id = request.headers.get('mcp-session-id');
    const session = sessions.get(id ?? '');
    if (session) return session.handleRequest(request, options);
    if (id !== null) return new Response('Session not found', { status: 404 });
    const transport: WebStandardStreamableHTTPServerTransport = new WebStandardStreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => void sessions.set(id, transport),
      onsessionclosed: (id) => void sessions.delete(id),
      eventStore: new Events(),
      retryInterval: 500,
    });
    await createServer().connect(transport);
    return transport.handleRequest(request, options);
  };
}
