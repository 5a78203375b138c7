// What API Gateway does for a Lambda function (payload format 2.0): node lambda.js FILE, whose `handler` gets the
// events.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';

interface Result {
  statusCode: number;
  headers?: Record<string, string>;
  multiValueHeaders?: Record<string, string[]>;
  body?: string;
  isBase64Encoded?: boolean;
}
type Handler = (event: object, context: object) => Promise<Result>;
const { handler }: { handler: Handler } = await import(pathToFileURL(process.argv[2] ?? '').href);

async function toEvent(req: IncomingMessage): Promise<object> {
  const [rawPath = '/', rawQueryString = ''] = (req.url ?? '/').split('?');
  const headers = Object.fromEntries(Object.entries(req.headers).map(([name, value]) => [name, String(value)]));
  const http = { method: req.method, path: rawPath, protocol: 'HTTP/1.1', sourceIp: '192.0.2.1', userAgent: 'test' };
  const body = (await buffer(req)).toString('base64');
  const requestContext = { http, stage: '$default', domainName: headers['host'] };
  return {
    version: '2.0',
    routeKey: '$default',
    rawPath,
    rawQueryString,
    headers,
    requestContext,
    ...(body !== '' && { body, isBase64Encoded: true }),
  };
}

async function answer(req: IncomingMessage, res: ServerResponse): Promise<void> {
  const result = await handler(await toEvent(req), { awsRequestId: 'test', callbackWaitsForEmptyEventLoop: false });
  const { statusCode, headers, multiValueHeaders, body = '', isBase64Encoded = false } = result;
  res.writeHead(statusCode, { ...headers, ...multiValueHeaders });
  res.end(Buffer.from(body, isBase64Encoded ? 'base64' : 'utf8'));
}
createServer((req, res) => {
  answer(req, res).catch((error: unknown) => res.writeHead(502).end(String(error)));
}).listen(3000, '127.0.0.1');
