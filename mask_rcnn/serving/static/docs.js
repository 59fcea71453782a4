// The page of the API: openapi.json as headings, tables and examples.

const METHODS = ['get', 'post', 'put', 'delete'];
const MAX_DEPTH = 6; // of nested schemas

const main = document.getElementById('main');
show();

async function show() {
  try {
    const response = await fetch('openapi.json');
    if (!response.ok) {
      throw new Error(`error ${response.status}`);
    }
    main.replaceChildren(...renderDocument(await response.json()));
  } catch (error) {
    const problem = make('p', `openapi.json cannot be read: ${error.message}`);
    problem.className = 'problem';
    problem.setAttribute('role', 'alert');
    main.replaceChildren(problem);
  }
  main.setAttribute('aria-busy', 'false');
}

function renderDocument(api) {
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({
      method,
      path,
      operation: item[method],
      parameters: [...(item.parameters ?? []), ...(item[method].parameters ?? [])],
      anchor: `${method}${path.replace(/[^a-z0-9]+/gi, '-')}`,
    })),
  );
  const contents = make('ul', ...operations.map(({ method, path, anchor }) => {
    const link = make('a', `${method.toUpperCase()} ${path}`);
    link.href = `#${anchor}`;
    return make('li', link);
  }));
  contents.className = 'contents';
  return [
    make('h2', api.info.title),
    ...paragraphs(api.info.summary),
    ...paragraphs(api.info.description),
    paragraph(`Version ${api.info.version}`, 'muted'),
    contents,
    ...operations.map((entry) => renderOperation(api, entry)),
  ];
}

function renderOperation(api, { method, path, operation, parameters, anchor }) {
  const section = make('section');
  section.className = 'operation';
  const badge = make('span', method.toUpperCase());
  badge.className = 'method';
  const heading = make('h3', badge, make('code', path));
  heading.id = anchor;
  section.setAttribute('aria-labelledby', anchor);
  section.append(heading, ...paragraphs(operation.summary), ...paragraphs(operation.description));
  if (parameters.length) {
    const rows = parameters.map((reference) => {
      const { name, schema, description } = resolve(api, reference);
      return [make('code', name), make('code', typeOf(api, schema)), describe(api, schema, description)];
    });
    section.append(make('h4', 'Parameters'), table(rows));
  }
  const body = resolve(api, operation.requestBody ?? {});
  if (body.content) {
    section.append(make('h4', 'Request'), ...paragraphs(body.description), renderContent(api, body.content));
  }
  section.append(make('h4', 'Example'), make('pre', make('code', exampleOf(method, path, body))));
  section.append(make('h4', 'Answers'), ...renderAnswers(api, operation.responses ?? {}));
  return section;
}

function renderContent(api, content) {
  return table(Object.entries(content).map(([type, { schema }]) => [make('code', type), describe(api, schema)]));
}

/** Return a table of the statuses, and the structure of each JSON answer that is not an error. */
function renderAnswers(api, responses) {
  const entries = Object.entries(responses).map(([status, reference]) => [status, resolve(api, reference)]);
  const rows = entries.map(([status, { description, content }]) => [
    make('code', status),
    make('code', Object.keys(content ?? {}).join(', ')),
    description ?? '',
  ]);
  const schemas = entries
    .filter(([status]) => status.startsWith('2'))
    .map(([, { content }]) => content?.['application/json']?.schema)
    .map((schema) => outline(api, schema))
    .filter((text) => text.includes('\n'))
    .map((text) => make('pre', make('code', text)));
  return [table(rows), ...schemas];
}

/** Return a shell command that sends the request. */
function exampleOf(method, path, body) {
  const address = `${location.origin}${path}`;
  return method === 'get' || !body.content
    ? `curl ${method === 'get' ? '' : `-X ${method.toUpperCase()} `}${address}`
    : `curl --data-binary @picture.jpg -H 'Content-Type: image/jpeg' ${address}`;
}

/** Return the structure of a schema as JSON whose values are types and descriptions. */
function outline(api, reference, depth = 0) {
  const schema = resolve(api, reference ?? {});
  const indent = '  '.repeat(depth + 1);
  const options = schema.oneOf ?? schema.anyOf;
  if (options) {
    return options.map((option) => outline(api, option, depth)).join(' | ');
  }
  if (schema.properties && depth < MAX_DEPTH) {
    const lines = Object.entries(schema.properties).map(([name, value]) => {
      const text = describe(api, value);
      return `${indent}${JSON.stringify(name)}: ${outline(api, value, depth + 1)}${text ? `  // ${text}` : ''}`;
    });
    return `{\n${lines.join('\n')}\n${'  '.repeat(depth)}}`;
  }
  if (schema.type === 'array' && schema.items) {
    return `[${outline(api, schema.items, depth)}, …]`;
  }
  return typeOf(api, schema);
}

function typeOf(api, reference) {
  const schema = resolve(api, reference ?? {});
  const types = schema.enum ? schema.enum.map((value) => JSON.stringify(value)) : [schema.type ?? 'any'].flat();
  return types.join(' | ');
}

/** Return the description of a schema with its range and default. */
function describe(api, reference, text) {
  const schema = resolve(api, reference ?? {});
  const { minimum, maximum } = schema;
  const parts = [text ?? schema.description ?? ''];
  if (minimum !== undefined || maximum !== undefined) {
    parts.push(`${minimum ?? '−∞'} to ${maximum ?? '∞'}.`);
  }
  if (schema.default !== undefined) {
    parts.push(`Default: ${schema.default}.`);
  }
  return parts.filter(Boolean).join(' ');
}

/** Return the object to which "$ref" refers. */
function resolve(api, value) {
  if (!value?.$ref) {
    return value ?? {};
  }
  const names = value.$ref.split('/').slice(1);
  return resolve(api, names.reduce((node, name) => node?.[name.replaceAll('~1', '/').replaceAll('~0', '~')], api));
}

function table(rows) {
  const lines = rows.map(([first, ...cells]) => {
    const head = make('th', first);
    head.scope = 'row';
    return make('tr', head, ...cells.map((cell) => make('td', cell)));
  });
  const wrapper = make('div', make('table', make('tbody', ...lines)));
  wrapper.className = 'scroll';
  return wrapper;
}

function paragraphs(text) {
  return (text ?? '').split(/\n\s*\n/).filter(Boolean).map((part) => paragraph(part));
}

function paragraph(text, className = '') {
  const element = make('p', text);
  element.className = className;
  return element;
}

/** Return an element; text becomes text nodes, never HTML. */
function make(name, ...children) {
  const element = document.createElement(name);
  element.append(...children);
  return element;
}
