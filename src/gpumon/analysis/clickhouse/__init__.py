"""ClickHouse as the engine of the views: tables, views, and runs that are in them."""
