// What a framework with routes made of files does with them: node routes.js PATH=FILE…, whose exports are named after
// methods.
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { serve } from '@hono/node-server';

type Route = Record<string, (request: Request) => Promise<Response>>;
const routes = new Map<string, Route>();
for (const [path = '', file = ''] of process.argv.slice(2).map((route) => route.split('=')))
  routes.set(path, await import(pathToFileURL(resolve(file)).href));

const fetch = (request: Request): Response | Promise<Response> => {
  const route = routes.get(new URL(request.url).pathname);
  if (!route) return new Response(null, { status: 404 });
  return route[request.method]?.(request) ?? new Response(null, { status: 405 });
};
serve({ fetch, port: 3000, hostname: '127.0.0.1' });
