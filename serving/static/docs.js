// Shows the interface with Swagger UI, which is served from here.
const { document: url } = document.currentScript.dataset;
SwaggerUIBundle({ url, dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
