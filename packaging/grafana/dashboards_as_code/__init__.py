"""The Grafana dashboards as code: ``make dashboards`` (python -m dashboards_as_code) writes ../dashboards.

Metrics are named by the catalog's constants and described by its words, so that a metric that is renamed
there is renamed here, and one that is gone does not build. The JSON is that of Grafana's dashboard schema
39 (Grafana 11 and later read it); Grafana's own SDK for it needs Python 3.11, which not every machine that
builds this has.
"""
